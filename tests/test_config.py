"""Configuration files: what is taken, and errors that name file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from jubal import catalogue, config
from jubal.accounts.tiers import Tier, Tiers
from jubal.app import api_key, build
from jubal.core.errors import UnknownModel
from jubal.core.money import LongContext, Price

EVERYTHING = """
[server]
host = "127.0.0.1"
port = 8001
grpc_port = 50052
workers = 1
body_limit_mb = 8
drain_s = 5
trusted_proxies = ["10.0.0.0/8"]
wrong_key_delay_s = 0
tls_cert = "cert.pem"
tls_key = "key.pem"
cors_origins = ["https://app.example", "http://localhost:3000", "http://[::1]:3000"]
access_log = true
connections_max = 10
keep_alive_s = 5
header_timeout_s = 0.5
body_timeout_s = 0.5
body_bytes_per_s_min = 0
write_timeout_s = 2
[usage]
retention_days = 30
[store]
url = "postgresql://127.0.0.1/jubal"
[limits]
url = "redis://127.0.0.1:6379/1"
when_away = "memory"
[fetch]
allow_private_hosts = ["intranet.example:8000"]
[engines.local]
kind = "llama"
model = "smollm2-135m"
mmproj = "eye.gguf"
context = 4096
slots = 2
threads = 1
gpu_layers = 0
[engines.box]
kind = "openai"
base_url = "http://127.0.0.1:8001/v1"
api_key = "sk-secret"
timeout_s = 30
retries = 2
max_concurrency = 4
max_queued = 10
health_interval_s = 0
breaker_failures = 3
breaker_rest_s = 1.5
[engines.xai]
kind = "xai"
api_key_env = "XAI_API_KEY"
[models."grok-4"]
engine = "box"
upstream = "name there"
aliases = ["g4"]
context = 256000
input = ["text", "image"]
reasoning = true
fallback = ["local"]
rps = 1
rpm = 30
tpm = 9000
price = { input = 3.0, cached_input = 0.75, output = 15, image = 4, reasoning = 5, request = 0.01, tools = { web_search = 0.005 }, long_context = { threshold = 100, input = 6, cached_input = 1.5, output = 30 } }
[tools.web_search]
provider = "searxng"
base_url = "http://127.0.0.1:8080"
allow_private_hosts = ["127.0.0.1"]
[tools.x_search]
provider = "archive"
path = "posts.jsonl"
[tools.code_execution]
enabled = false
sandbox = "landlock"
timeout_s = 10
memory_mb = 256
sessions_max = 4
output_kb = 32
files_max = 4
files_mb = 8
[cache]
enabled = true
entries = 10
mb = 0.5
ttl_s = 60
[tiers.beta]
monthly_credit_usd = 25
postpaid_cap_usd = 10
request_usd = 0.03
answer_tokens_max = 100
rps = 2
rpm = 60
tpm = 100000
"""


def load(tmp_path: Path, text: str, **environ: str) -> config.Settings:
    file = tmp_path / "jubal.toml"
    file.write_text(text)
    return config.load(file, {"JUBAL_HOME": str(tmp_path), **environ})


def test_everything_of_the_contract(tmp_path: Path) -> None:
    settings = load(tmp_path, EVERYTHING)
    assert settings.server.port == 8001
    assert settings.store_url == "postgresql://127.0.0.1/jubal"
    model = catalogue.build(settings).find("g4")
    assert model.name == "grok-4"
    assert model.upstream == "name there"
    assert model.price == Price(
        30_000,
        7_500,
        150_000,
        image=40_000,
        reasoning=50_000,
        tools=(("web_search", 50_000_000),),
        long_context=LongContext(100, 60_000, 15_000, 300_000),
        request=100_000_000,
    )
    usd = 10_000_000_000
    assert Tiers.configured(settings.tiers).get("beta") == Tier(
        "beta", 25 * usd, 10 * usd, 300_000_000, 60, 100_000, 100, 2
    )
    assert model.fallback == ("local",)
    assert settings.private_hosts == ("intranet.example:8000", "127.0.0.1")
    assert set(catalogue.engine_settings(settings, catalogue.build(settings))) == {"box", "local"}


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    settings = config.load(None, {"JUBAL_HOME": str(tmp_path)})
    assert settings == config.Settings(home=tmp_path)
    assert settings.store_url == f"sqlite:///{tmp_path}/jubal.db"
    assert catalogue.engine_settings(settings, catalogue.build(settings)) == {"local": catalogue.LOCAL_DEFAULT}


def test_the_environment_names_a_file_too_and_an_argument_wins(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("[server]\nport = 1\n")
    two.write_text("[server]\nport = 2\n")
    environ = {"JUBAL_HOME": str(tmp_path), "JUBAL_CONFIG": str(one)}
    assert config.load(None, environ).server.port == 1
    assert config.load(two, environ).server.port == 2


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("[server]\nprot = 1\n", "server.prot", "Known keys: host, port"),
        ("[sever]\n", "sever", "Known keys: server, store"),
        ("[server]\nport = 'x'\n", "server.port", "expected `int`"),
        ("[server]\nport = 70000\n", "server.port", "<= 65535"),
        ("[server]\nworkers = 0\n", "server.workers", ">= 1"),
        ("[server]\ntls_cert = 'a'\n", "server.tls_key", "come together"),
        ("[server]\ntls_key = 'a'\n", "server.tls_cert", "come together"),
        ("[server]\ncors_origins = ['*']\n", "server.cors_origins", "wildcard"),
        ("[server]\ncors_origins = ['https://app.example/']\n", "server.cors_origins", "without path"),
        ("[server]\ncors_origins = ['https://*.example']\n", "server.cors_origins", "wildcard"),
        ("[server]\ncors_origins = ['null']\n", "server.cors_origins", "got `null`"),
        ("[server]\nconnections_max = 0\n", "server.connections_max", ">= 1"),
        ("server = 1\n", "server", "expected `object`"),
        ("[engines.box]\nkind = 'opnai'\n", "engines.box.kind", "expected `llama` or `openai` or `xai`"),
        ("[tools.web_search]\nprovider = 'gogle'\n", "tools.web_search.provider", "or `tavily`, got 'gogle'"),
        ("[models.m]\nengine = 'local'\ninput = ['text', 'sound']\n", "models.m.input", "expected `text` or `image`"),
        ("[engines.box]\n", "engines.box", "missing required field `kind`"),
        ("[engines.box]\nkind = 'openai'\n", "engines.box.base_url", "http://"),
        ("[engines.box]\nkind = 'openai'\nbase_url = 'ftp://x'\n", "engines.box.base_url", "ftp://x"),
        ("[engines.box]\nkind = 'openai'\nbase_url = 'http://x/?v=1'\n", "engines.box.base_url", "without a query"),
        ("[engines.box]\nkind = 'openai'\nbase_url = 'http://x/#a'\n", "engines.box.base_url", "fragment"),
        ("[engines.box]\nkind = 'openai'\nbase_url = 'http://x'\nslots = 2\n", "engines.box.slots", "kind `openai`"),
        (
            "[engines.box]\nkind = 'openai'\nbase_url = 'http://x'\nmmproj = 'a'\n",
            "engines.box.mmproj",
            "kind `openai`",
        ),
        ("[fetch]\nallow = []\n", "fetch.allow", "Known keys: allow_private_hosts"),
        ("[engines.local]\nkind = 'llama'\nbase_url = 'http://x'\n", "engines.local.base_url", "kind `llama`"),
        ("[models.\"grok-4\"]\nengine = 'nowhere'\n", 'models."grok-4".engine', "nowhere"),
        ("[models.\"grok-4\"]\nfallback = ['nowhere']\n", 'models."grok-4".fallback', "nowhere"),
        ('[models."grok-4"]\nprice = { inptu = 1 }\n', "models.grok-4.price.inptu", "cached_input"),
        ('[models."grok-4"]\nprice = { input = -1 }\n', "models.grok-4.price.input", ">= 0"),
        ("[store]\nurl = 'mysql://root:secret@x'\n", "store.url", "postgresql://"),
        ("[limits]\nurl = 'memcached://x'\n", "limits.url", "redis://"),
        ("[tools.web_search]\nprovider = 'bing'\n", "tools.web_search.provider", "bing"),
        ("[tools.x_search]\nbase_url = 'http://127.0.0.1:1'\n", "tools.x_search.base_url", "provider `archive`"),
        ("[tools.x_search]\nprovider = 'x-api'\npath = 'x'\n", "tools.x_search.path", "provider `x-api`"),
        ("[tools.x_search]\nprovider = 'x-api'\nbase_url = 'ftp://x'\n", "tools.x_search.base_url", "ftp://x"),
        ("[tools.x_search]\nprovider = 'x-api'\nreads_max = 1\n", "tools.x_search.reads_max", ">= 10"),
        ('[models."grok-4"]\nprice = { input = inf }\n', "models.grok-4.price.input", "<= 1000000"),
        ('[models."grok-4"]\nprice = { output = nan }\n', "models.grok-4.price.output", ">= 0"),
        ("[tiers.beta]\nmonthly_credit_usd = inf\n", "tiers.beta.monthly_credit_usd", "<= 400000000"),
        ("[tiers.beta]\npostpaid_cap_usd = 1e300\n", "tiers.beta.postpaid_cap_usd", "<= 400000000"),
        ("[tiers.beta]\nrequest_usd = 1e7\n", "tiers.beta.request_usd", "<= 1000000"),
        ("[tiers.beta]\ntpm = 9007199254740992\n", "tiers.beta.tpm", "9007199254740991"),
        ("[tiers.beta]\nrpm = 0\n", "tiers.beta.rpm", ">= 1"),
        ("[usage]\nretention_days = 0\n", "usage.retention_days", ">= 1"),
        ("[server]\nwrong_key_delay_s = 61\n", "server.wrong_key_delay_s", "<= 60"),
        ("[server\n", "not valid TOML", "line 1"),
    ],
)
def test_errors_name_file_key_and_what_was_expected(tmp_path: Path, text: str, key: str, expected: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "jubal.toml") in message
    assert key in message
    assert expected in message
    assert "secret" not in message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="no such file"):
        config.load(tmp_path / "none.toml", {"JUBAL_HOME": str(tmp_path)})


def test_settings_can_be_printed_without_their_secrets(tmp_path: Path) -> None:
    assert "sk-secret" not in repr(load(tmp_path, EVERYTHING))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hunter2@127.0.0.1:5432/jubal?password=hunter2", "postgresql://127.0.0.1:5432/jubal"),
        ("postgresql:///jubal?host=/run&password=hunter2", "postgresql:///jubal"),
        ("redis://:hunt@er2@127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://hunter2@cache.example", "rediss://cache.example"),
        ("http://user:p/hunter2@box.example/v1", "http://box.example/v1"),
        ("memory://", "memory://"),
        ("postgresql://me:a?hunter2@127.0.0.1/jubal", "postgresql://…"),
        ("postgresql://127.0.0.1/jubal?user=a@b&password=hunter2", "postgresql://…"),
        ("redis:hunter2", "redis:…"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert config.without_secrets(url) == shown


def test_tables_with_addresses_can_be_printed(tmp_path: Path) -> None:
    secret = "hunter2"
    engine = config.Engine(kind="openai", base_url=f"http://me:{secret}@127.0.0.1/v1", api_key=secret)
    store = config.Store(url=f"postgresql://me:{secret}@127.0.0.1/jubal")
    settings = config.Settings(
        home=tmp_path, store=store, limits=config.Limits(url=f"redis://:{secret}@127.0.0.1"), engines={"box": engine}
    )
    assert secret not in repr(settings)
    assert "127.0.0.1/jubal" in repr(settings)


def test_a_key_variable_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XAI_API_KEY", raising=False)
    with pytest.raises(config.ConfigError, match=r"\$XAI_API_KEY"):
        api_key("xai", config.Engine(kind="xai"))


def test_own_engines_without_the_local_one_serve_only_what_is_configured(tmp_path: Path) -> None:
    text = '[engines.box]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n[models."grok-4"]\nengine = "box"\n'
    models = catalogue.build(load(tmp_path, text))
    assert [model.name for model in models] == ["grok-4"]
    with pytest.raises(UnknownModel, match="grok-4"):
        models.find("grok-beta")


def test_an_address_of_redis_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"limits\.url: expected redis://") as caught:
        build(load(tmp_path, '[limits]\nurl = "redis://user:hunter2@127.0.0.1:port"\n'))
    assert "hunter2" not in str(caught.value)


def test_a_proxy_that_is_no_address(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"jubal\.toml: server\.trusted_proxies: .* `proxy\.example`"):
        build(load(tmp_path, '[server]\ntrusted_proxies = ["proxy.example"]\n'))


@pytest.mark.parametrize("table", ["fetch", "tools.web_search"])
def test_a_host_that_is_none(tmp_path: Path, table: str) -> None:
    with pytest.raises(
        config.ConfigError, match=rf"jubal\.toml: {table}\.allow_private_hosts: expected .* `http://x/`"
    ):
        build(load(tmp_path, f'[{table}]\nallow_private_hosts = ["http://x/"]\n'))


def test_a_price_of_what_is_no_tool(tmp_path: Path) -> None:
    settings = load(tmp_path, '[models."grok-4"]\nprice = { input = 3, tools = { web_serach = 0.01 } }\n')
    with pytest.raises(config.ConfigError, match=r'models\."grok-4"\.price\.tools: .* `web_serach`.* web_search'):
        catalogue.build(settings)


def test_the_seeds_models_and_prices() -> None:
    models = {model.name: model for model in catalogue.DEFAULT}
    assert {
        "grok-4",
        "grok-4-fast-reasoning",
        "grok-4-fast-non-reasoning",
        "grok-beta",
        "grok-2-1212",
        "grok-1",
    } == set(models)
    assert models["grok-4"].price == Price.from_usd_per_million(3.00, 0.75, 15.00)
    assert models["grok-4"].context == 256_000
    assert models["grok-4-fast-reasoning"].context == 2_000_000
    assert models["grok-1"].deprecated


def test_every_key_is_in_the_reference() -> None:
    page = (Path(__file__).parent.parent / "docs/reference/configuration.md").read_text()
    tables: list[type[msgspec.Struct]] = [config.Server, config.Store, config.Limits, config.Usage, config.Fetch, config.Engine, config.Model, config.ModelPrice, config.LongContext, config.WebSearch, config.XSearch, config.CodeExecution, config.Cache, config.Tier]  # fmt: skip
    missing = [
        f"{table.__name__}.{key}" for table in tables for key in table.__struct_fields__ if f"`{key}`" not in page
    ]
    assert not missing
