/* A fake OpenAI-compatible model server, fast enough to vanish from a gateway's figures: one thread, epoll.
 *
 *     upstream            listens on a free port of 127.0.0.1 and prints the port
 *
 * POST .../chat/completions   one fixed completion, or with "stream":true an SSE stream: N chunks, the finish reason,
 *                             a usage chunk when "include_usage":true was asked, [DONE].
 * GET  /set?chunks=N&delay_us=D   what later streams get; answers the counters.
 * GET  .../models, /health    small JSON. Anything else: 404.
 *
 * Every chunk's text is "@" and 19 digits: CLOCK_MONOTONIC in ns at its write, so that the load client can tell how
 * long the chunk was on its way. Without a delay every open stream gets one chunk per turn of the loop, each chunk a
 * write of its own, as from an engine that serves them side by side.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 8192, REQUEST_MAX = 64 << 20, BACKLOG_MAX = 256 << 10, EVENTS_MAX = 512 };

#define HEAD(type) "HTTP/1.1 200 OK\r\nContent-Type: " type "\r\n"
#define CHUNK "data: {\"id\":\"chatcmpl-bench0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1700000000," \
              "\"model\":\"bench\",\"system_fingerprint\":\"fp_bench\","
static const char ANSWER[] =
    "{\"id\":\"chatcmpl-bench0123456789\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"BENCHOK The quick brown fox jumps over "
    "the lazy dog, while whatever stands between adds as little as it can to the time of this answer.\","
    "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":25,"
    "\"completion_tokens\":29,\"total_tokens\":54,\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0}},\"system_fingerprint\":\"fp_bench\"}";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,"
                             "\"owned_by\":\"bench\",\"max_model_len\":131072}]}";
static const char STREAM_HEAD[] = HEAD("text/event-stream") "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

typedef struct {
    int fd, closing, sent, chunks, usage_asked, place; /* place: index in streams, -1: not streaming */
    int64_t due;
    char *in, *out;
    size_t in_len, in_cap, out_len, out_cap; /* out: what the kernel did not take yet */
} Conn;

static Conn *conns[CONNECTIONS_MAX], *streams[CONNECTIONS_MAX];
static int ep, streaming, chunks = 64;
static int64_t delay_ns;
static long requests, chunks_sent;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static char *room(char *buffer, size_t *cap, size_t need) {
    if (need <= *cap) return buffer;
    *cap = need * 2;
    if (!(buffer = realloc(buffer, *cap))) abort();
    return buffer;
}

static void watch(Conn *c, int op) {
    struct epoll_event e = {.events = EPOLLIN | (c->out_len ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(ep, op, c->fd, &e);
}

/* Writes, and keeps what the kernel doesn't take. 0, or -1 when the connection is broken. */
static int put(Conn *c, const char *data, size_t n) {
    if (!c->out_len) {
        ssize_t w = send(c->fd, data, n, MSG_NOSIGNAL);
        if (w < 0 && errno != EAGAIN) return -1;
        if (w > 0) data += w, n -= w;
    }
    if (!n) return 0;
    int was_empty = !c->out_len;
    c->out = room(c->out, &c->out_cap, c->out_len + n);
    memcpy(c->out + c->out_len, data, n);
    c->out_len += n;
    if (was_empty) watch(c, EPOLL_CTL_MOD);
    return 0;
}

static int put_kept(Conn *c) {
    ssize_t w = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (w < 0) return errno == EAGAIN ? 0 : -1;
    memmove(c->out, c->out + w, c->out_len -= w);
    if (!c->out_len) watch(c, EPOLL_CTL_MOD);
    return 0;
}

static int put_json(Conn *c, const char *body) {
    char wire[4096];
    int n = snprintf(wire, sizeof wire, HEAD("application/json") "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    return put(c, wire, n);
}

/* One HTTP chunk around an SSE frame, appended at `wire`; its length is returned. */
static size_t frame(char *wire, const char *sse, int n) {
    return sprintf(wire, "%x\r\n%.*s\r\n", n, n, sse);
}

static void stop_stream(Conn *c) {
    if (c->place < 0) return;
    streams[c->place] = streams[--streaming];
    streams[c->place]->place = c->place;
    c->place = -1;
}

/* The next chunk of a stream, or its end. */
static int put_next(Conn *c, int64_t now) {
    char sse[1024], wire[4096];
    if (c->sent < c->chunks) {
        int n = sprintf(sse, CHUNK "\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"@%019lld \"},\"logprobs\":null,"
                        "\"finish_reason\":null}]}\n\n", c->sent ? "" : "\"role\":\"assistant\",", (long long)now_ns());
        c->sent++, chunks_sent++, c->due += delay_ns;
        if (c->due < now - 1000000000LL) c->due = now; /* far behind: don't catch up in a burst */
        return put(c, wire, frame(wire, sse, n));
    }
    stop_stream(c);
    size_t w = frame(wire, sse, sprintf(sse, CHUNK "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,"
                                        "\"finish_reason\":\"stop\"}]}\n\n"));
    if (c->usage_asked)
        w += frame(wire + w, sse, sprintf(sse, CHUNK "\"choices\":[],\"usage\":{\"prompt_tokens\":25,\"completion_tokens\":%d,"
                                          "\"total_tokens\":%d}}\n\n", c->chunks, c->chunks + 25));
    w += sprintf(wire + w, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    return put(c, wire, w);
}

/* Is `"name":true` in the body? Blanks after the colon are allowed. */
static int says_true(const char *body, size_t n, const char *name) {
    const char *at = memmem(body, n, name, strlen(name)), *end = body + n;
    if (!at) return 0;
    for (at += strlen(name); at < end && (*at == ' ' || *at == ':'); at++) {}
    return at < end && *at == 't';
}

static int answer(Conn *c, const char *line, size_t line_len, const char *body, size_t body_len) {
    requests++;
#define LINE_HAS(text) memmem(line, line_len, text, sizeof text - 1)
    if (LINE_HAS("/chat/completions")) {
        if (!says_true(body, body_len, "\"stream\"")) return put_json(c, ANSWER);
        c->sent = 0, c->chunks = chunks;
        c->due = now_ns() + delay_ns * (requests * 7919 % 997) / 997; /* streams that began together don't tick in step */
        c->usage_asked = says_true(body, body_len, "\"include_usage\"");
        streams[c->place = streaming++] = c;
        return put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1);
    }
    if (LINE_HAS("/set")) {
        const char *arg;
        char counters[256];
        if ((arg = LINE_HAS("chunks="))) chunks = atoi(arg + 7);
        if ((arg = LINE_HAS("delay_us="))) delay_ns = atoll(arg + 9) * 1000;
        sprintf(counters, "{\"chunks\":%d,\"delay_us\":%lld,\"requests\":%ld,\"chunks_sent\":%ld}", chunks,
                (long long)delay_ns / 1000, requests, chunks_sent);
        return put_json(c, counters);
    }
    if (LINE_HAS("/models")) return put_json(c, MODELS);
    if (LINE_HAS("/health")) return put_json(c, "{\"status\":\"ok\"}");
    static const char NOT_FOUND[] = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    return put(c, NOT_FOUND, sizeof NOT_FOUND - 1);
}

static const char *header(const char *head, const char *name) {
    for (const char *at = head; (at = strstr(at, "\r\n")) && at[2] != '\r'; at += 2)
        if (!strncasecmp(at + 2, name, strlen(name)) && at[2 + strlen(name)] == ':') return at + 3 + strlen(name);
    return NULL;
}

/* Joins the chunks of a chunked body in place. -1: not all here yet; else the body's length, *total: bytes used. */
static long unchunk(char *body, size_t n, size_t *total) {
    for (int join = 0; join < 2; join++) /* first look whether it is whole, then move */
        for (size_t at = 0, out = 0;;) {
            char *eol = memmem(body + at, n - at, "\r\n", 2);
            if (!eol) return -1;
            size_t size = strtoul(body + at, NULL, 16), data = eol + 2 - body;
            if (data + size + 2 > n) return -1;
            if (!size && !join) break;
            if (!size) return *total = data + 2, (long)out;
            if (join) memmove(body + out, body + data, size);
            out += size, at = data + size + 2;
        }
    return -1;
}

/* Answers the requests that are whole. -1: close the connection. */
static int serve(Conn *c) {
    while (c->place < 0 && c->in_len) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return 0;
        size_t head = end + 4 - c->in, used = 0, n = 0;
        end[3] = 0; /* the head ends in CR LF CR NUL: a string; restored when the body is not here yet */
        const char *length = header(c->in, "content-length"), *coding = header(c->in, "transfer-encoding");
        const char *connection = header(c->in, "connection");
        c->closing = connection && strcasestr(connection, "close") && strcasestr(connection, "close") < strchr(connection, '\r');
        if (length) n = used = strtoul(length, NULL, 10);
        long joined = !length && coding && c->in_len > head ? unchunk(c->in + head, c->in_len - head, &used) : 0;
        end[3] = '\n';
        if (joined < 0 || c->in_len < head + used || (!length && coding && !used)) return 0;
        if (joined) n = joined;
        if (answer(c, c->in, strcspn(c->in, "\r"), c->in + head, n)) return -1;
        memmove(c->in, c->in + head + used, c->in_len -= head + used);
    }
    return 0;
}

static int read_some(Conn *c) {
    c->in = room(c->in, &c->in_cap, c->in_len + 65536);
    ssize_t r = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
    if (r == 0 || (r < 0 && errno != EAGAIN) || c->in_len > REQUEST_MAX) return -1;
    if (r > 0) c->in_len += r;
    return r > 0 ? serve(c) : 0;
}

static void drop(Conn *c) {
    stop_stream(c);
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in), free(c->out), free(c);
}

static int over(Conn *c) { return c->closing && c->place < 0 && !c->out_len && !c->in_len; }

static void take(int listener) {
    for (int fd, one = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (fd >= CONNECTIONS_MAX) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Conn *c = conns[fd] = calloc(1, sizeof *c);
        c->fd = fd, c->place = -1;
        watch(c, EPOLL_CTL_ADD);
    }
}

/* Gives every stream that is due its chunk; ms until the next is due, at most a second. */
static int turn(void) {
    int64_t now = now_ns(), next = now + 1000000000LL;
    for (int i = streaming - 1; i >= 0; i--) {
        Conn *c = streams[i];
        if (c->due <= now && c->out_len < BACKLOG_MAX && (put_next(c, now) || serve(c) || over(c))) { drop(c); continue; }
        if (c->place >= 0 && c->out_len < BACKLOG_MAX && c->due < next) next = c->due;
    }
    return next <= now ? 0 : (next - now + 999999) / 1000000;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives the bench program */
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    if (bind(listener, (void *)&a, size) || listen(listener, 4096) || getsockname(listener, (void *)&a, &size))
        return perror("upstream"), 1;
    printf("%d\n", ntohs(a.sin_port)), fflush(stdout);
    ep = epoll_create1(EPOLL_CLOEXEC);
    Conn gate = {.fd = listener};
    watch(&gate, EPOLL_CTL_ADD);
    for (struct epoll_event events[EVENTS_MAX];;) {
        int n = epoll_wait(ep, events, EVENTS_MAX, turn());
        for (int i = 0; i < n; i++) {
            Conn *c = conns[events[i].data.fd];
            if (events[i].data.fd == listener) { take(listener); continue; }
            if (!c) continue;
            int broken = events[i].events & EPOLLOUT && c->out_len && put_kept(c);
            if (!broken && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) broken = read_some(c);
            if (broken || over(c)) drop(c);
        }
    }
}
