/* Load client: one thread, epoll, HTTP/1.1 keep-alive, closed loop, 127.0.0.1 only. It trusts no answer.
 *
 *     load PORT PATH BODY_FILE json|sse CONNECTIONS SECONDS CHUNKS [HEADER]...
 *
 * json: good is status 200 and the text BENCHOK.
 * sse:  good is status 200, CHUNKS stamps ("@" and 19 digits, the upstream's clock when it wrote them, never going
 *       back), `completion_tokens` and, after the last stamp, [DONE]. Stamps are counted, not frames or reads, so it
 *       doesn't matter how a gateway cuts or joins the stream.
 * Runs for SECONDS (at most 60) and waits at most 10 s more for what is open then: every request sent is counted good
 * or bad. Prints one JSON object; times in µs: latency (whole answer), ttfb (first byte of the body; for sse the first
 * stamp), chunk (from the upstream's write to our read).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 4096, HEAD_MAX = 16384, STAMP_DIGITS = 19, SAMPLES_MAX = 1 << 24, GIVE_UP_BAD = 200 };
enum State { IDLE, SENDING, HEAD, BODY };
enum Coding { SIZE, SIZE_REST, DATA, DATA_END, TRAILER }; /* where in a chunked body */

typedef struct {
    int fd, status, chunked, closing, stamps, digits, wrong;
    enum State state;
    enum Coding coding;
    size_t sent, head_len;
    long long left;                 /* bytes of the body, or of its chunk, still to come; -1: until the end of file */
    int line_len;                   /* of the trailer line */
    int marker_at, usage_at, done_at; /* how much of each text was matched; its full length: seen */
    int64_t began, first, stamp, last_stamp;
    char head[HEAD_MAX + 1];
} Conn;

typedef struct { int64_t *values; size_t n, cap; } Samples;

static const char MARKER[] = "BENCHOK", USAGE[] = "\"completion_tokens\"", DONE[] = "[DONE]";
static Conn *conns;
static int ep, port, connections, sse, chunks;
static char *request, why[256];
static size_t request_len;
static long good, bad, good_in_time, stamps_in_time;
static int64_t deadline;
static Samples latency, ttfb, chunk;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void keep(Samples *s, int64_t value) {
    if (s->n == SAMPLES_MAX) return;
    if (s->n == s->cap && !(s->values = realloc(s->values, (s->cap = s->cap ? s->cap * 2 : 65536) * sizeof *s->values))) abort();
    s->values[s->n++] = value;
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
    if (s->n) qsort(s->values, s->n, sizeof *s->values, by_value);
#define AT(share) (s->n ? s->values[(size_t)((s->n - 1) * (share))] / 1e3 : 0.0)
    printf("\"%s\":{\"n\":%zu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f},", name, s->n, AT(.5), AT(.9), AT(.99), AT(1));
}

static void disconnect(Conn *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1, c->state = IDLE;
}

static void count_bad(Conn *c, const char *reason) {
    bad++;
    if (!why[0])
        snprintf(why, sizeof why, "%s: status %d, %d chunks%s", reason, c->status, c->stamps, c->done_at == sizeof DONE - 1 ? "" : ", no [DONE]");
    disconnect(c);
}

static void watch(Conn *c, uint32_t events, int op) {
    struct epoll_event e = {.events = events, .data.u32 = c - conns};
    epoll_ctl(ep, op, c->fd, &e);
}

static void send_more(Conn *c) {
    ssize_t w = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (w < 0 && errno != EAGAIN) { count_bad(c, strerror(errno)); return; }
    if (w > 0) c->sent += w;
    int waited = c->state == SENDING, waits = c->sent < request_len;
    c->state = waits ? SENDING : HEAD;
    if (waits != waited) watch(c, waits ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void begin(Conn *c) {
    if (c->fd < 0) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int one = 1;
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->status = c->stamps = c->done_at = 0;
        if (connect(c->fd, (void *)&a, sizeof a)) { count_bad(c, "no connection"); return; } /* loopback: at once or never */
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
    int fd = c->fd;
    memset(c, 0, offsetof(Conn, head)); /* the head needs no clearing */
    c->fd = fd, c->left = -1, c->began = now_ns();
    send_more(c);
}

static void end_answer(Conn *c, int64_t now) {
    int whole = sse ? c->stamps == chunks && !c->wrong && c->usage_at == sizeof USAGE - 1 && c->done_at == sizeof DONE - 1
                    : c->marker_at == sizeof MARKER - 1;
    if (c->status != 200 || !whole) { count_bad(c, "wrong answer"); return; }
    good++;
    if (now <= deadline) good_in_time++;
    keep(&latency, now - c->began);
    keep(&ttfb, c->first - c->began);
    c->state = IDLE;
    if (c->closing) disconnect(c);
}

/* One step of looking for a text whose first character comes only once in it. */
static inline void match(int *at, const char *text, int size, char ch) {
    if (*at == size - 1) return;
    *at = ch == text[*at] ? *at + 1 : ch == text[0];
}

static void see_stamp(Conn *c, int64_t now) {
    if (c->stamp < c->last_stamp || c->done_at) c->wrong = 1;
    c->last_stamp = c->stamp;
    if (!c->stamps++) c->first = now;
    if (now <= deadline) stamps_in_time++;
    keep(&chunk, now - c->stamp);
}

/* The body's bytes, whatever the framing. */
static void see(Conn *c, const char *data, size_t n, int64_t now) {
    if (!sse) {
        if (!c->first) c->first = now;
        for (size_t i = 0; i < n && c->marker_at < (int)sizeof MARKER - 1; i++) match(&c->marker_at, MARKER, sizeof MARKER, data[i]);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        char ch = data[i];
        if (c->digits && ch >= '0' && ch <= '9') {
            c->stamp = c->stamp * 10 + (ch - '0');
            if (c->digits++ == STAMP_DIGITS) c->digits = 0, see_stamp(c, now);
            continue;
        }
        c->digits = ch == '@', c->stamp = 0;
        match(&c->done_at, DONE, sizeof DONE, ch);
        if (c->usage_at == sizeof USAGE - 1) continue;
        c->usage_at = ch == USAGE[c->usage_at] ? c->usage_at + 1 : ch == '"'; /* its last quote may begin the next try */
    }
}

static int hex(char ch) {
    return ch >= '0' && ch <= '9' ? ch - '0' : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10 : -1;
}

/* A chunked body; 1 when it is over. */
static int see_chunked(Conn *c, const char *data, size_t n, int64_t now) {
    for (size_t i = 0; i < n;) {
        if (c->coding == DATA) {
            size_t part = n - i < (size_t)c->left ? n - i : (size_t)c->left;
            see(c, data + i, part, now);
            i += part;
            if (!(c->left -= part)) c->coding = DATA_END;
            continue;
        }
        char ch = data[i++];
        if (c->coding == DATA_END && ch == '\n') c->coding = SIZE, c->left = 0;
        else if ((c->coding == SIZE || c->coding == SIZE_REST) && ch == '\n') c->coding = c->left ? DATA : TRAILER, c->line_len = 0;
        else if (c->coding == SIZE && hex(ch) >= 0) c->left = c->left * 16 + hex(ch);
        else if (c->coding == SIZE) c->coding = SIZE_REST; /* CR, or an extension */
        else if (c->coding == TRAILER && ch == '\n' && !c->line_len) return 1;
        else if (c->coding == TRAILER && ch != '\r') c->line_len = ch == '\n' ? 0 : c->line_len + 1;
    }
    return 0;
}

static void read_head(Conn *c) {
    char *save, *line = strtok_r(c->head, "\r\n", &save);
    c->status = line && strlen(line) > 9 ? atoi(line + 9) : 0;
    while ((line = strtok_r(NULL, "\r\n", &save))) {
        if (!strncasecmp(line, "content-length:", 15)) c->left = atoll(line + 15);
        if (!strncasecmp(line, "transfer-encoding:", 18)) c->chunked = !!strcasestr(line, "chunked"), c->left = 0;
        if (!strncasecmp(line, "connection:", 11)) c->closing = !!strcasestr(line, "close");
    }
    c->state = BODY;
}

static void receive(Conn *c) {
    static char buffer[1 << 17];
    ssize_t r = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    int64_t now = now_ns();
    if (r < 0 && errno == EAGAIN) return;
    if (r <= 0 && c->state == IDLE) { disconnect(c); return; }
    if (r <= 0 && c->state == BODY && c->left < 0) { c->closing = 1; end_answer(c, now); return; }
    if (r <= 0 || c->state == IDLE) { count_bad(c, "connection closed"); return; }
    const char *data = buffer;
    if (c->state != BODY) {
        size_t before = c->head_len, part = (size_t)r < HEAD_MAX - before ? (size_t)r : HEAD_MAX - before;
        memcpy(c->head + before, data, part);
        c->head[c->head_len += part] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) { if (c->head_len == HEAD_MAX) count_bad(c, "head too long"); return; }
        size_t used = end + 4 - c->head - before;
        data += used, r -= used;
        *end = 0;
        read_head(c);
    }
    if (c->chunked) { if (see_chunked(c, data, r, now)) end_answer(c, now); return; }
    see(c, data, r, now);
    if (c->left >= 0 && (c->left -= r) <= 0) end_answer(c, now);
}

static void read_request(char **argv, int headers) {
    FILE *file = fopen(argv[3], "rb");
    if (!file) perror(argv[3]), exit(2);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    request = malloc(size + HEAD_MAX);
    request_len = snprintf(request, HEAD_MAX, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\nContent-Length: %ld\r\n", argv[2], port, size);
    for (int i = 0; i < headers; i++) request_len += snprintf(request + request_len, 1024, "%.1000s\r\n", argv[8 + i]);
    request_len += sprintf(request + request_len, "\r\n");
    request_len += fread(request + request_len, 1, size, file);
    fclose(file);
}

int main(int argc, char **argv) {
    if (argc < 8 || argc > 16) return fprintf(stderr, "usage: load PORT PATH BODY_FILE json|sse CONNECTIONS SECONDS CHUNKS [HEADER]...\n"), 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives the bench program */
    port = atoi(argv[1]), sse = !strcmp(argv[4], "sse"), connections = atoi(argv[5]), chunks = atoi(argv[7]);
    double seconds = atof(argv[6]) < 60 ? atof(argv[6]) : 60;
    if (connections < 1 || connections > CONNECTIONS_MAX) return fprintf(stderr, "connections: 1 to %d\n", CONNECTIONS_MAX), 2;
    read_request(argv, argc - 8);
    ep = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc(connections, sizeof *conns);
    int64_t start = now_ns(), now = start;
    deadline = start + (int64_t)(seconds * 1e9);
    for (int i = 0; i < connections; i++) conns[i].fd = -1, begin(&conns[i]);
    for (struct epoll_event events[512]; now < deadline + 10000000000LL; now = now_ns()) {
        int open = 0, more = now < deadline && bad < GIVE_UP_BAD;
        for (int i = 0; i < connections && !open && !more; i++) open = conns[i].state != IDLE;
        if (!open && !more) break;
        int n = epoll_wait(ep, events, 512, 20);
        for (int i = 0; i < n; i++) {
            Conn *c = &conns[events[i].data.u32];
            if (c->fd >= 0 && c->state == SENDING && events[i].events & EPOLLOUT) send_more(c);
            if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
            if (c->state == IDLE && now_ns() < deadline && bad < GIVE_UP_BAD) begin(c);
        }
    }
    for (int i = 0; i < connections; i++) if (conns[i].state != IDLE) count_bad(&conns[i], "not finished");
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double window = (now < deadline ? now - start : deadline - start) / 1e9;
    printf("{\"good\":%ld,\"bad\":%ld,\"why\":\"%s\",\"seconds\":%.3f,\"rps\":%.1f,\"chunks_per_s\":%.1f,", good, bad, why, window, good_in_time / window, stamps_in_time / window);
    print_samples("latency", &latency), print_samples("ttfb", &ttfb), print_samples("chunk", &chunk);
    printf("\"chunks\":%zu,\"cpu_s\":%.3f}\n", chunk.n, used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
    return 0;
}
