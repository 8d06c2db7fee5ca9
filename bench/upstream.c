// The benchmark's upstream: one thread, epoll, loopback only, no libraries. Its words are in dialects.h.
//
//   upstream [PORT]        prints the port that it listens on; 0, the default, is any free one
//
// GET answers a model list. POST answers in the format of its path: about 1 KB, or, where the body says "stream": true,
// chunks of about 250 bytes, one write each. "[[chunks=N every=US hold=US]]" in the prompt says how many and how far
// apart, and for how long no more of the request is read once that has come. A body behind more than 4 KB is looked at
// in its first and last 4 KB only.
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

#include "dialects.h"

enum { CONNECTIONS = 16384, BODY = 8 << 20, BACKLOG = 1 << 20, EDGE = 4096 };

struct conn {
    int fd, place;            // place in the heap of those that wait for their time, or -1
    char *in, *out;           // bytes of the request so far; bytes that the socket did not take
    size_t used, room, unsent, out_room;
    long left, every;         // chunks still to write; microseconds between two
    int64_t due;
    const struct dialect *speaks;
    bool streaming, usage, writable, held, was_held;
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

static const struct dialect DIALECTS[] = {OLLAMA, GEMINI, GEMINI_WHOLE, RESPONSES, MESSAGES, CHAT};
enum { KINDS = sizeof DIALECTS / sizeof *DIALECTS, NUMBERS = 2 };

// A piece of each dialect as one chunk of HTTP, and a whole answer with its head: where its clock and its numbers are.
static struct said { char bytes[2560]; size_t length; char *digits, *numbers[NUMBERS]; } pieces[KINDS], answers[KINDS];

static void stamp(char *digits) {
    int64_t value = now();
    for (int i = 20; i > 1; i--, value /= 10) digits[i] = (char)('0' + value % 10);
}

static void find_marks(struct said *s) {
    s->digits = strstr(s->bytes, "@@");
    char *at = s->bytes;
    for (int i = 0; i < NUMBERS && (at = strstr(at, "1000")); i++, at += 4) s->numbers[i] = at;
}

static void compose(void) {
    char words[640], body[2048];
    for (size_t i = 0; i < sizeof words; i++) words[i] = "lorem ipsum dolor "[i % 18];
    for (int i = 0; i < KINDS; i++) {
        struct said *piece = &pieces[i], *answer = &answers[i];
        const char *said = DIALECTS[i].piece;
        piece->length = (size_t)snprintf(piece->bytes, sizeof piece->bytes, "%zx\r\n%s\r\n", strlen(said), said);
        find_marks(piece);
        snprintf(body, sizeof body, DIALECTS[i].answer, (int)sizeof words, words);
        answer->length = (size_t)snprintf(answer->bytes, sizeof answer->bytes, "HTTP/1.1 200 OK\r\nContent-Type: "
                                          "application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
        answer->digits = strstr(answer->bytes, "@@");
    }
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

static void interest(struct conn *c, bool writable, bool held) {
    if (c->writable == writable && c->held == held) return;
    c->writable = writable;
    c->held = held;
    struct epoll_event e = {.events = (held ? 0u : EPOLLIN) | (writable ? EPOLLOUT : 0u), .data.ptr = c};
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
    interest(c, true, c->held);
    return true;
}

static bool frame(struct conn *c, const char *data) {
    char bytes[2048];
    return !*data || say(c, bytes, (size_t)snprintf(bytes, sizeof bytes, "%zx\r\n%s\r\n", strlen(data), data));
}

static bool finish(struct conn *c) {
    const struct dialect *d = c->speaks;
    c->streaming = false;
    return frame(c, d->finish) && (!c->usage || frame(c, d->counted)) && frame(c, d->end) && say(c, "0\r\n\r\n", 5);
}

static bool say_piece(struct conn *c) {
    struct said *piece = &pieces[c->speaks - DIALECTS];
    stamp(piece->digits);
    for (int i = 0; i < NUMBERS && piece->numbers[i]; i++) {
        long value = 1000 + c->left % 9000;
        for (int n = 3; n >= 0; n--, value /= 10) piece->numbers[i][n] = (char)('0' + value % 10);
    }
    return say(c, piece->bytes, piece->length);
}

static void wait_until(struct conn *c, int64_t due) {
    if (waiting == CONNECTIONS) return;
    c->due = due;
    heap[waiting++] = c;
    sift(waiting - 1);
}

// Writes the chunks whose time has come.
static bool go_on(struct conn *c) {
    while (c->streaming && !c->unsent) {
        if (!c->left) return finish(c);
        if (!say_piece(c)) return false;
        if (--c->left && c->every) break;
    }
    if (c->streaming && c->every && c->left && c->place < 0) wait_until(c, (c->due ? c->due : now()) + c->every * 1000);
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

static long shape(const char *body, size_t length, const char *key, long otherwise) {
    const char *begin = find(body, length, "[["), *at;
    if (!begin) return otherwise;
    char text[80] = {0};
    size_t rest = (size_t)(body + length - begin);
    memcpy(text, begin, rest < 79 ? rest : 79);
    return (at = strstr(text, key)) && at < strstr(text, "]]") ? atol(at + strlen(key)) : otherwise;
}

static bool say_list(struct conn *c, const char *head) {
    size_t i = 0;
    while (!strstr(head, LISTS[i].path)) i++;
    char bytes[1024];
    return say(c, bytes, (size_t)snprintf(bytes, sizeof bytes, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                                          "Content-Length: %zu\r\n\r\n%s", strlen(LISTS[i].said), LISTS[i].said));
}

// `head` ends with its first line.
static bool answer_to(struct conn *c, const char *head, const char *body, size_t length) {
    int kind = 0;
    while (kind < KINDS && !strstr(head, DIALECTS[kind].path)) kind++;
    if (!strncmp(head, "GET ", 4) || kind == KINDS) return say_list(c, head);
    c->speaks = &DIALECTS[kind];
    if (!says(body, length, "\"stream\"") && !strstr(c->speaks->path, ":stream")) {
        stamp(answers[kind].digits);
        return say(c, answers[kind].bytes, answers[kind].length);
    }
    c->left = shape(body, length, "chunks=", 100);
    c->every = shape(body, length, "every=", 0);
    c->due = 0;
    c->usage = says(body, length, "\"include_usage\"");
    c->streaming = true;
    char bytes[256];
    int size = snprintf(bytes, sizeof bytes, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nCache-Control: no-cache\r\n"
                        "Transfer-Encoding: chunked\r\n\r\n", c->speaks->type);
    return say(c, bytes, (size_t)size) && frame(c, c->speaks->first) && go_on(c);
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
    long hold = have && !c->was_held ? shape(c->in + head, have, "hold=", 0) : 0;
    if (hold) {
        interest(c, c->writable, true);
        c->was_held = true;
        wait_until(c, now() + hold * 1000);
        return 0;
    }
    if (length == -2 || (size_t)length > have) return 0;
    char *line = memchr(c->in, '\r', c->used);
    *line = 0;
    bool fine = answer_to(c, c->in, c->in + head, (size_t)length);
    c->was_held = false;
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
    interest(c, false, c->held);
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
        if (c->held) { c->due = 0; interest(c, c->writable, false); }
        else if (!go_on(c)) drop(c);
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
