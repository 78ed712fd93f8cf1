"""A small site of forty pages on technical topics, written for these tests, and twenty questions with the page that answers each."""

from __future__ import annotations

TOPICS: dict[str, tuple[str, str]] = {
    "tcp-handshake": ("How TCP opens a connection", "A client sends a segment with the SYN flag, the server answers with SYN and ACK, and the client confirms with an ACK. After these three steps both sides know the other's first sequence number and data can flow. A server under a SYN flood answers with cookies, so that half-open connections cost it no memory."),
    "udp": ("UDP datagrams", "UDP adds ports and a checksum to IP and nothing else. Datagrams may be lost, arrive twice or out of order, and nobody slows the sender down. Games and voice calls prefer it, since a late packet is worth less than the next one."),
    "dns": ("Names and the DNS", "A resolver asks a root server, then the server of the top-level domain, then the authoritative one. Answers are cached for as long as their time to live says. An MX record names the mail servers of a domain, a CNAME is an alias, and AAAA records hold IPv6 addresses."),
    "tls": ("Transport Layer Security", "In the handshake both sides agree on a key that nobody who listens can compute. The server proves who it is by a certificate that a trusted authority signed. TLS 1.3 needs one round trip, and resumes an earlier session with none."),
    "http-caching": ("Caching in HTTP", "A response with max-age may be used again without asking. With an ETag the client asks whether its copy is still good, and gets 304 Not Modified without a body. Vary tells which request headers make a difference; no-store forbids keeping anything."),
    "load-balancing": ("Balancing load", "Round robin gives each server the next request in turn; least connections prefers the one that has the fewest open. Consistent hashing keeps a client on the same backend when others come and go. Health checks take a dead machine out of rotation."),
    "btree": ("B-trees", "A B-tree keeps sorted keys in wide nodes, each as large as a disk block, so that three or four reads find one row among millions. When a node is full it splits and its middle key moves up. Range scans walk along the linked leaves."),
    "lsm-tree": ("Log-structured merge trees", "Writes go to a table in memory and a log; full tables are written out sorted and never changed. Compaction merges them in the background. Bloom filters spare reads of files that can't hold the key. This trades slower reads for very fast writes."),
    "transactions": ("Transactions and isolation", "Read committed never shows uncommitted rows. Repeatable read shows the same rows each time they are read. Serializable behaves as if transactions ran one after another, and aborts some that conflict. Write skew happens below that level."),
    "sql-joins": ("Joining tables", "An inner join keeps pairs of rows that match. A left outer join also keeps rows of the first table that have no partner, with nulls in place of the other's columns. The planner chooses between nested loops, hash joins and merge joins."),
    "replication": ("Database replicas", "A primary ships its log of changes to followers. Synchronous followers confirm before a commit returns, asynchronous ones may lag behind and serve stale data. When the primary dies, a follower is promoted, and the old one must be fenced off."),
    "raft": ("Consensus with Raft", "Servers elect a leader for a term by majority vote. The leader appends entries to its log and copies them to the others; an entry is committed once most have it. A follower that hears no heartbeat for a random time begins an election."),
    "virtual-memory": ("Virtual memory and paging", "Each process has its own addresses, translated page by page to physical frames. A page fault fetches what is not in memory from disk. The translation lookaside buffer remembers recent translations; huge pages let it cover more."),
    "scheduler": ("Process scheduling", "The kernel gives each runnable thread a share of the processor by its weight and lets the one that had least run next. A context switch saves registers and loads those of the other thread. Real-time priorities come before all of that."),
    "deadlock": ("Deadlocks", "Two threads wait for each other's lock forever when both hold one and want the other. Taking locks in one fixed order everywhere makes that impossible. Databases look for cycles in the graph of who waits for whom, and abort a victim."),
    "garbage-collection": ("Collecting garbage", "A tracing collector marks all objects that can be reached from roots and frees the rest. Generational ones look at young objects more often, as most die early. Reference counting frees at once but never frees cycles by itself."),
    "git-rebase": ("Rewriting history with git rebase", "Rebase takes the commits of a branch and applies them anew on another base, so that history becomes a line. Interactive mode squashes, reorders and edits commits. Never rebase what others have pulled: the reflog helps when it went wrong."),
    "git-bisect": ("Finding the commit that broke it", "Bisect halves the range between a good and a bad revision until the first bad one is left. With a script that exits non-zero on failure it runs by itself, so a thousand commits take ten steps."),
    "containers": ("Linux containers", "Namespaces give a process its own view of mounts, users, process ids and network; cgroups limit memory and processor time. An image is a stack of read-only layers with a writable one on top. There is no second kernel."),
    "seccomp": ("Filtering system calls", "A seccomp filter is a small BPF program that the kernel runs for each system call. It can allow, refuse with an error, or kill the process. Sandboxes use it to take away calls that a program never needs, which makes the kernel's attack surface smaller."),
    "python-asyncio": ("Concurrency with asyncio", "A coroutine gives control back at each await, and the event loop runs another. gather starts several at once and waits for all of them; a timeout block cancels what takes too long. Blocking calls belong in a thread, or everything stands still."),
    "python-gil": ("The global interpreter lock", "Only one thread at a time executes Python bytecode in a classic build, so threads do not make pure computations faster. Processes do, and so do libraries that release the lock while they compute. Free-threaded builds have no such lock."),
    "regex-backtracking": ("Slow regular expressions", "A pattern such as nested repetition may try exponentially many ways to match before it fails. Attackers send text that triggers this catastrophic backtracking. Engines based on automata run in linear time, but know no back references."),
    "unicode": ("Unicode and UTF-8", "Unicode numbers characters; UTF-8 writes each number in one to four bytes, ASCII unchanged. What a reader sees as one character may be several code points, so normalise to NFC before comparing. A lone surrogate can't be encoded."),
    "floating-point": ("Floating point numbers", "0.1 has no exact binary fraction, which is why 0.1 + 0.2 is not 0.3. Doubles carry about sixteen decimal digits. Compare with a tolerance, add small numbers first, and use decimals for money."),
    "hash-tables": ("Hash tables", "A hash function maps a key to a slot. Collisions are chained in lists or probed for in the next slots. At a load factor near one the table grows and all keys move. A seed that attackers do not know keeps them from forcing collisions."),
    "sorting": ("Sorting algorithms", "Quicksort is fast on average and quadratic at worst. Mergesort is stable and needs extra space. Timsort finds runs that are sorted already and merges them. Radix sort compares nothing and beats all of them on small integers."),
    "shortest-path": ("Shortest paths in graphs", "Dijkstra's algorithm takes the nearest unvisited node from a priority queue and relaxes its edges. It needs weights that are not negative; Bellman-Ford allows them. A* adds a guess of the remaining distance and visits fewer nodes."),
    "password-hashing": ("Storing passwords", "Passwords are stored as salted hashes by a slow function that needs much memory, such as Argon2 or scrypt. The salt makes rainbow tables useless. A fast digest such as SHA-256 alone lets an attacker try billions of guesses a second."),
    "public-key": ("Public key cryptography", "A message encrypted with someone's public key can be read with the private one only. Signatures work the other way round. RSA rests on factoring, elliptic curves on discrete logarithms with much shorter keys."),
    "xss": ("Cross-site scripting", "A page that writes a visitor's input into HTML without escaping it lets strangers run script in other visitors' browsers. Escape by context, use templates that do it, and send a content security policy that forbids inline script."),
    "csrf": ("Forged requests across sites", "A foreign page can make a browser send a form to a site where the user is logged in, cookies included. A secret token in each form, or cookies with SameSite set to Lax or Strict, stop that."),
    "oauth": ("Delegated access with OAuth", "The user approves at the authorization server, the app gets a code, and exchanges it for an access token with a secret or a PKCE verifier. Tokens expire and are renewed with a refresh token. The app never sees the password."),
    "css-grid": ("Layout with CSS grid", "A grid container declares columns and rows; fr units share what is left. Items may span several tracks and name areas. For one dimension flexbox is enough, with justify-content along the main axis and align-items across it."),
    "image-formats": ("Picture formats", "JPEG throws away detail that eyes hardly notice and has no transparency. PNG loses nothing and suits screenshots. WebP and AVIF are smaller than both; SVG holds shapes instead of pixels and stays sharp at any size."),
    "gradient-descent": ("Gradient descent", "Weights move a small step against the gradient of the loss. Too large a learning rate diverges, too small a one crawls. Momentum smooths the path, and Adam scales each weight's step by the history of its gradients."),
    "transformers": ("Attention and transformers", "Each token asks with a query, others answer with keys, and values are mixed by the softmax of their products. Several heads look at different relations. The cost grows with the square of the sequence length; a key-value cache spares recomputation."),
    "quantization": ("Quantized weights", "Four-bit integers with a scale per block take a quarter of the memory of half precision and lose little quality. Activations often stay in higher precision, as outliers hurt. Smaller weights also mean less memory traffic, which is what bounds generation on a CPU."),
    "solar-panels": ("Photovoltaic cells", "Light lifts electrons over the band gap of silicon, and the junction drives them one way. A single junction can turn about a third of sunlight into electricity at best. Inverters find the voltage of greatest power and make alternating current."),
    "sourdough": ("Baking with sourdough", "Wild yeast and lactic bacteria live in a starter of flour and water that is fed daily. Dough rises slowly in the cold and gets sour. A hot pot with a lid keeps the steam that makes a crisp crust."),
}  # fmt: skip

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("What are the three steps with SYN and ACK?", "tcp-handshake"),
    ("which record names the mail servers of a domain", "dns"),
    ("304 Not Modified ETag", "http-caching"),
    ("How do I keep a client on the same backend server?", "load-balancing"),
    ("why do databases split a full node and move the middle key up", "btree"),
    ("storage engine with very fast writes, bloom filters and compaction", "lsm-tree"),
    ("write skew isolation level", "transactions"),
    ("keep rows without a partner, with nulls", "sql-joins"),
    ("leader election by majority vote", "raft"),
    ("page fault translation lookaside buffer", "virtual-memory"),
    ("two threads waiting for each other's lock", "deadlock"),
    ("find first bad commit automatically with a script", "git-bisect"),
    ("squash and reorder commits", "git-rebase"),
    ("asyncio gather timeout", "python-asyncio"),
    ("Why do threads not speed up Python computations?", "python-gil"),
    ("catastrophic backtracking in patterns", "regex-backtracking"),
    ("why is 0.1 + 0.2 not 0.3?", "floating-point"),
    ("What should I use to hash user passwords with a salt?", "password-hashing"),
    ("token in forms SameSite cookies", "csrf"),
    ("learning rate too large diverges", "gradient-descent"),
)

NAVIGATION = (
    '<nav><a href="/">Home</a> <a href="/about.html">About these notes</a> <a href="/search?q=">Search</a></nav>'
)


def pages() -> dict[str, str]:
    """Path to HTML. The first page leads to ten topics, and each topic to the next ones, so that a crawler has to walk."""
    names = list(TOPICS)
    listed = "".join(f'<li><a href="{name}.html">{TOPICS[name][0]}</a></li>' for name in names[:10])
    found = {
        "/": _html("Engineer's notebook", f"<h1>Engineer's notebook</h1><p>Notes on forty topics.</p><ul>{listed}</ul>"),
        "/about.html": _html("About", "<p>Short notes that were written as test data. Nobody should learn a trade from them.</p>"),
        "/private/diary.html": _html("Diary", "<p>The crawler must never read this diary of secrets.</p>"),
    }  # fmt: skip
    for place, name in enumerate(names):
        title, text = TOPICS[name]
        sentences = [f"<p>{one}.</p>" for one in text.rstrip(".").split(". ")]
        after = [names[at] for at in (place + 1, place + 10) if at < len(names)]
        links = "".join(f'<a href="./{one}.html#top">{TOPICS[one][0]}</a> ' for one in after)
        body = f"<article><h1>{title}</h1>{''.join(sentences)}</article><p>See also {links}<a href='/private/diary.html'>diary</a></p>"
        found[f"/{name}.html"] = _html(title, body)
    return found


def _html(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{title} - Engineer's notebook</title></head>"
        f"<body>{NAVIGATION}<main>{body}</main><footer>Written for tests</footer></body></html>"
    )
