// The benchmark's upstream: OpenAI's shapes, one thread, epoll, loopback only, no libraries.
//
//   upstream [PORT]        prints the port that it listens on; 0, the default, is any free one
//
// GET answers a model list. POST answers a chat completion of about 1 KB, or, where the body says "stream": true,
// chunks of about 250 bytes, one write each. "[[chunks=N every=US]]" in the prompt says how many and how far apart;
// a body behind more than 4 KB is looked at in its first and last 4 KB only.
// Each piece of content begins with "@@" and the clock's nanoseconds, so that the generator knows its age.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 16384, BODY = 8 << 20, BACKLOG = 1 << 20, EDGE = 4096 };

struct conn {
    int fd, place;            // place in the heap of those that wait for their time, or -1
    char *in, *out;           // bytes of the request so far; bytes that the socket did not take
    size_t used, room, unsent, out_room;
    long left, every;         // chunks still to write; microseconds between two
    int64_t due;
    bool streaming, usage, writable;
};

static int poller, timer, waiting;
static struct conn *heap[CONNECTIONS];

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) { perror(what); exit(1); }

// -- what is said ----------------------------------------------------------------------------------------------------

#define ID "\"id\":\"chatcmpl-bench0123456789\",\"created\":1767225600,\"model\":\"bench\""
#define CHUNK(delta, finish) "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{" \
    delta "},\"logprobs\":null,\"finish_reason\":" finish "}]}\n\n"
#define USAGE "\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":100,\"total_tokens\":112}"
#define DIGITS "@@0000000000000000000"
#define JSON_HEAD "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s"

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
                                  "Transfer-Encoding: chunked\r\n\r\n";
static const char ROLE[] = CHUNK("\"role\":\"assistant\",\"content\":\"\"", "null");
static const char FINISH[] = CHUNK("", "\"stop\"");
static const char COUNTED[] = "data: {" ID ",\"object\":\"chat.completion.chunk\",\"choices\":[]," USAGE "}\n\n";
static const char DONE[] = "data: [DONE]\n\n";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1767225600,"
                             "\"owned_by\":\"bench\",\"max_model_len\":131072}],\"status\":\"healthy\",\"model_path\":\"bench\"}";
static char content[] = CHUNK("\"content\":\"" DIGITS " a few words more.\"", "null");
static char answer[2048], models[1024], framed[512];
static size_t answer_length, models_length, framed_length;
static char *answer_digits, *framed_digits;

static void stamp(char *digits) {
    int64_t value = now();
    for (int i = 20; i > 1; i--, value /= 10) digits[i] = (char)('0' + value % 10);
}

static void compose(void) {
    char words[640], body[1600];
    for (size_t i = 0; i < sizeof words; i++) words[i] = "lorem ipsum dolor "[i % 18];
    snprintf(body, sizeof body, "{" ID ",\"object\":\"chat.completion\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
             "\"assistant\",\"content\":\"" DIGITS " %.*s\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE "}",
             (int)sizeof words, words);
    answer_length = (size_t)snprintf(answer, sizeof answer, JSON_HEAD, strlen(body), body);
    models_length = (size_t)snprintf(models, sizeof models, JSON_HEAD, strlen(MODELS), MODELS);
    framed_length = (size_t)snprintf(framed, sizeof framed, "%zx\r\n%s\r\n", strlen(content), content);
    answer_digits = strstr(answer, "@@");
    framed_digits = strstr(framed, "@@");
}

// -- connections, and the heap of those that wait ----------------------------------------------------------------------

static void put(int place, struct conn *c) { heap[place] = c; c->place = place; }

static void sift(int i) {
    struct conn *c = heap[i];
    for (; i && heap[(i - 1) / 2]->due > c->due; i = (i - 1) / 2) put(i, heap[(i - 1) / 2]);
    for (int child; (child = 2 * i + 1) < waiting; i = child) {
        if (child + 1 < waiting && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        put(i, heap[child]);
    }
    put(i, c);
}

static void forget(struct conn *c) {
    int place = c->place;
    if (place < 0) return;
    c->place = -1;
    struct conn *last = heap[--waiting];
    if (last != c) { put(place, last); sift(place); }
}

static void drop(struct conn *c) {
    forget(c);
    close(c->fd);
    free(c->in); free(c->out); free(c);
}

static void interest(struct conn *c, bool writable) {
    if (c->writable == writable) return;
    c->writable = writable;
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

// Writes, and keeps what the socket does not take. False: the connection is of no more use.
static bool say(struct conn *c, const char *bytes, size_t length) {
    ssize_t taken = c->unsent ? 0 : send(c->fd, bytes, length, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) return false;
    size_t rest = length - (taken > 0 ? (size_t)taken : 0);
    if (!rest) return true;
    if (c->unsent + rest > BACKLOG) return false;
    if (c->unsent + rest > c->out_room && !(c->out = realloc(c->out, c->out_room = 2 * (c->unsent + rest)))) die("memory");
    memcpy(c->out + c->unsent, bytes + length - rest, rest);
    c->unsent += rest;
    interest(c, true);
    return true;
}

static bool frame(struct conn *c, const char *data) {
    char bytes[512];
    return say(c, bytes, (size_t)snprintf(bytes, sizeof bytes, "%zx\r\n%s\r\n", strlen(data), data));
}

static bool finish(struct conn *c) {
    c->streaming = false;
    return frame(c, FINISH) && (!c->usage || frame(c, COUNTED)) && frame(c, DONE) && say(c, "0\r\n\r\n", 5);
}

// Writes the chunks whose time has come.
static bool go_on(struct conn *c) {
    while (c->streaming && !c->unsent) {
        if (!c->left) return finish(c);
        stamp(framed_digits);
        if (!say(c, framed, framed_length)) return false;
        if (--c->left && c->every) break;
    }
    if (c->streaming && c->every && c->left && c->place < 0 && waiting < CONNECTIONS) {
        int64_t from = c->due ? c->due : now();
        c->due = from + c->every * 1000;
        heap[waiting++] = c;
        sift(waiting - 1);
    }
    return true;
}

// -- requests ----------------------------------------------------------------------------------------------------------

static const char *find(const char *body, size_t length, const char *word) {
    const char *at = memmem(body, length < EDGE ? length : EDGE, word, strlen(word));
    return at || length <= EDGE ? at : memmem(body + length - EDGE, EDGE, word, strlen(word));
}

static bool says(const char *body, size_t length, const char *key) {
    const char *at = find(body, length, key);
    if (!at) return false;
    for (at += strlen(key); at < body + length && (*at == ':' || *at == ' '); at++) {}
    return at < body + length && *at == 't';
}

static bool answer_to(struct conn *c, const char *head, const char *body, size_t length) {
    if (!strncmp(head, "GET ", 4)) return say(c, models, models_length);
    if (!says(body, length, "\"stream\"")) { stamp(answer_digits); return say(c, answer, answer_length); }
    const char *shape = find(body, length, "[[chunks=");
    c->left = 100; c->every = 0; c->due = 0;
    if (shape) {
        char text[64] = {0};
        size_t rest = (size_t)(body + length - shape);
        memcpy(text, shape, rest < 63 ? rest : 63);
        sscanf(text, "[[chunks=%ld every=%ld]]", &c->left, &c->every);
    }
    c->usage = says(body, length, "\"include_usage\"");
    c->streaming = true;
    char bytes[1024];
    int size = snprintf(bytes, sizeof bytes, "%s%zx\r\n%s\r\n", STREAM_HEAD, strlen(ROLE), ROLE);
    return say(c, bytes, (size_t)size) && go_on(c);
}

// Where a chunked body ends; 0: not yet; -1: it is broken. The chunks are left in their frames.
static long chunked_end(const char *body, size_t length) {
    for (size_t at = 0;;) {
        const char *line = memmem(body + at, length - at, "\r\n", 2);
        if (!line) return 0;
        unsigned long size = strtoul(body + at, NULL, 16);
        if (size > BODY) return -1;
        at = (size_t)(line - body) + 2 + size + 2;
        if (at > length) return 0;
        if (!size) return (long)at;
    }
}

// One whole request out of what has come. 1: answered; 0: more is needed; -1: broken.
static int take(struct conn *c) {
    c->in[c->used] = 0;
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return c->used > 65536 ? -1 : 0;
    size_t head = (size_t)(end - c->in) + 4, have = c->used - head;
    end[2] = 0;
    const char *declared = strcasestr(c->in, "\r\ncontent-length:");
    long length = declared ? atol(declared + 17) : 0;
    if (!declared && strcasestr(c->in, "\r\ntransfer-encoding:") && !(length = chunked_end(c->in + head, have))) length = -2;
    end[2] = '\r';
    if (length == -1 || length > BODY) return -1;
    if (length == -2 || (size_t)length > have) return 0;
    bool fine = answer_to(c, c->in, c->in + head, (size_t)length);
    c->used -= head + (size_t)length;
    memmove(c->in, c->in + head + length, c->used);
    return fine ? 1 : -1;
}

static bool heard(struct conn *c) {
    if (c->room - c->used < 65536 && c->used < BODY + 65536 && !(c->in = realloc(c->in, (c->room = 2 * c->room + 65536) + 1)))
        die("memory");
    ssize_t got = recv(c->fd, c->in + c->used, c->room - c->used, 0);
    if (got <= 0) return got < 0 && errno == EAGAIN;
    c->used += (size_t)got;
    int taken = 1;
    while (c->used && !c->streaming && (taken = take(c)) > 0) {}
    return taken >= 0;
}

static bool flush(struct conn *c) {
    ssize_t taken = send(c->fd, c->out, c->unsent, MSG_NOSIGNAL);
    if (taken < 0) return errno == EAGAIN;
    c->unsent -= (size_t)taken;
    memmove(c->out, c->out + taken, c->unsent);
    if (c->unsent) return true;
    interest(c, false);
    return !c->streaming || c->place >= 0 || go_on(c);
}

static void welcome(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        c->fd = fd;
        c->place = -1;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    }
}

static void ring(void) {
    uint64_t rung;
    if (read(timer, &rung, sizeof rung) < 0 && errno != EAGAIN) die("timer");
    int64_t time = now();
    while (waiting && heap[0]->due <= time) {
        struct conn *c = heap[0];
        forget(c);
        if (!go_on(c)) drop(c);
    }
}

static void wind(int64_t *set_for) {
    int64_t due = waiting ? heap[0]->due : 0;
    if (due == *set_for) return;
    *set_for = due;
    struct itimerspec at = {.it_value = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)(count > 1 ? atoi(words[1]) : 0));
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    compose();
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    prctl(PR_SET_TIMERSLACK, 1UL);
    struct epoll_event events[256], e = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (int64_t set_for = 0;; wind(&set_for)) {
        int many = epoll_wait(poller, events, 256, -1);
        if (many < 0 && errno != EINTR) die("epoll_wait");
        bool rung = false;
        for (int i = 0; i < many; i++) {
            struct conn *c = events[i].data.ptr;
            if ((void *)c == &listener) welcome(listener);
            else if ((void *)c == &timer) rung = true;  // after the others: it may drop one of them
            else if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !heard(c)) ||
                     (events[i].events & EPOLLOUT && !flush(c))) drop(c);
        }
        if (rung) { set_for = 0; ring(); }
    }
}
