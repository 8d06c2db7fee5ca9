// The benchmark's load generator: one thread, epoll, keep-alive, loopback only, no libraries.
//
//   load -p PORT -f REQUEST [-c CONNECTIONS] [-r RATE] [-w WARM] [-d SECONDS] [-n PIECES] [-m LEAST]
//        [-e END] [-k KIND] [-x] [-a] [-g SPREAD] [-i SLOT] [-P PID,PID...] [-U PID]
//
// REQUEST holds the bytes of one request, head and body. Without -r each connection asks again when it is answered;
// with it, requests are due at RATE a second whatever becomes of them, and their time runs from when they were due.
// Counted is what happens in SECONDS after WARM seconds, or in up to four times as many, until LEAST requests (with -e:
// pieces) were counted. -n: pieces of content ("@@" and the clock of the upstream) that each answer must hold; -k: only
// in lines that hold KIND; -e: answers are streams, and END is in their last line; -x: a connection for each request;
// -g: the first requests are spread over so many seconds; -i: the greatest age of a piece in each SLOT of so many
// microseconds is told, too. -P, -U: processes whose CPU time is read at both edges of the window, and of those of -P
// the memory at its end, and the most since the start; -a: their CPU time is read from each request to a little after
// its answer instead. Prints one line of JSON.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
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

enum { LINE = 8192, SAMPLES = 4 << 20, PATIENCE = 1000, PIDS = 64, AFTER = 20000000 };
enum state { CLOSED, CONNECTING, IDLE, WRITING, HEAD, SIZED, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct conn {
    int fd;
    enum state state;
    int64_t began, first, rest;  // when it was asked; its first piece; bytes to come of body or chunk, -1: till it closes
    size_t sent, used;
    long pieces, served;
    bool done, closing, writable;
    char line[LINE];             // of the head, of a chunk's size, or of the body
};

struct samples { uint32_t *tenths; size_t count; };  // of a microsecond

static struct {
    int port, connections;
    double rate, warm, seconds, spread;
    long pieces, least, slot;
    const char *end, *kind;
    bool fresh, around;
} asked = {.connections = 1, .seconds = 1, .pieces = 1};
static struct samples latency, first_piece, age, stops;
static int64_t slot_ends, slot_most;  // of -i
static int64_t settles, around, before;  // of -a: when an account ends; nanoseconds in all; at the beginning of this one
static long requests, errors, reconnects, pieces, events;
static uint64_t bytes;
static char *request, why[256] = "";
static size_t request_length;
static int poller, idle_count;
static struct conn *all, **idle;
static bool counting;
static int64_t time_now;

static void begin(struct conn *c, int64_t due);
static int64_t cpu(void);

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) { fprintf(stderr, "load: %s: %s\n", what, strerror(errno)); exit(1); }

static void note(struct samples *s, int64_t nanoseconds) {
    if (!counting || s->count == SAMPLES) return;
    s->tenths[s->count++] = (uint32_t)(nanoseconds < 0 ? 0 : nanoseconds > 400000000000 ? 4000000000 : nanoseconds / 100);
}

static void note_age(int64_t nanoseconds) {
    note(&age, nanoseconds);
    if (!asked.slot || !counting) return;
    if (time_now >= slot_ends) {
        if (slot_ends) note(&stops, slot_most);
        slot_ends = time_now + asked.slot * 1000;
        slot_most = 0;
    }
    if (nanoseconds > slot_most) slot_most = nanoseconds;
}

static void fault(struct conn *c, const char *what) {
    if (!errors++) snprintf(why, sizeof why, "%s (state %d, %ld of %ld pieces, answer %ld)", what, c->state, c->pieces, asked.pieces, c->served);
    if (errors > PATIENCE && errors > requests) { fprintf(stderr, "load: too many errors: %s\n", why); exit(1); }
}

// -- connections -------------------------------------------------------------------------------------------------------

static void interest(struct conn *c, bool writable) {
    if (c->writable == writable) return;
    c->writable = writable;
    struct epoll_event e = {.events = EPOLLIN | (writable ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void shut(struct conn *c) {
    if (c->state == CLOSED) return;
    struct linger at_once = {1, 0};  // no TIME_WAIT: ports must not run out
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(c->fd);
    c->state = CLOSED;
}

static void dial(struct conn *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((uint16_t)asked.port);
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    c->state = CONNECTING;
    c->writable = true;
    c->served = 0;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

// The connection is of no more use. One that was kept and closed before it answered at all is opened anew.
static void lost(struct conn *c, const char *what) {
    bool again = c->state == IDLE || (c->served && (c->state == WRITING || (c->state == HEAD && !c->used)));
    int64_t due = c->began;
    bool was_idle = c->state == IDLE;
    if (again) reconnects++;
    else fault(c, what);
    shut(c);
    if (was_idle) {
        for (int i = 0; i < idle_count; i++) if (idle[i] == c) { idle[i] = idle[--idle_count]; break; }
        idle[idle_count++] = c;
    } else if (again || !asked.rate) begin(c, again ? due : time_now);
    else idle[idle_count++] = c;
}

static void write_on(struct conn *c) {
    ssize_t taken = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) { lost(c, "send"); return; }
    if (taken > 0) c->sent += (size_t)taken;
    bool whole = c->sent == request_length;
    interest(c, !whole);
    if (whole) c->state = HEAD;
}

static void begin(struct conn *c, int64_t due) {
    if (asked.around && counting && !settles) before = cpu();
    if (asked.around) settles = INT64_MAX;
    c->began = due;
    c->first = 0;
    c->pieces = 0;
    c->sent = c->used = 0;
    c->done = c->closing = false;
    if (c->state == CLOSED) { dial(c); return; }
    c->state = WRITING;
    write_on(c);
}

// -- answers -----------------------------------------------------------------------------------------------------------

// One line of a body: an event's data, an object, or a whole JSON document.
static void body_line(struct conn *c, const char *line, size_t length) {
    const char *end = line + length;
    if (length && counting) events++;
    if (asked.end && memmem(line, length, asked.end, strlen(asked.end))) c->done = true;
    if (asked.kind && !memmem(line, length, asked.kind, strlen(asked.kind))) return;
    for (const char *at = line; (at = memmem(at, (size_t)(end - at), "@@", 2)) && end - at >= 21; at += 21) {
        int64_t sent = 0;
        for (int i = 2; i < 21; i++) sent = sent * 10 + (at[i] - '0');
        if (!c->pieces++) c->first = time_now;
        if (counting) pieces++;
        note_age(time_now - sent);
    }
}

static void body(struct conn *c, const char *data, size_t length) {
    while (length) {
        const char *end = memchr(data, '\n', length);
        size_t size = end ? (size_t)(end - data) : length, keep = size < LINE - c->used ? size : LINE - c->used;
        if (end && !c->used) body_line(c, data, size);
        else {
            memcpy(c->line + c->used, data, keep);
            c->used += keep;
            if (end) { body_line(c, c->line, c->used); c->used = 0; }
        }
        size += end != NULL;
        data += size;
        length -= size;
    }
}

static void finished(struct conn *c) {
    if (c->used) body_line(c, c->line, c->used);
    c->used = 0;
    if (c->pieces != asked.pieces || (asked.end && !c->done)) fault(c, "an answer that is not whole");
    else if (counting) {
        requests++;
        note(&latency, time_now - c->began);
        note(&first_piece, c->first - c->began);
    }
    c->served++;
    if (asked.around) settles = time_now + AFTER;
    if (asked.fresh || c->closing) shut(c);
    else c->state = IDLE;
    if (asked.rate) idle[idle_count++] = c;
    else begin(c, time_now);
}

// The head is whole, in c->line. False: it is not one to go on with.
static bool read_head(struct conn *c) {
    c->line[c->used] = 0;
    c->used = 0;
    if (strncmp(c->line, "HTTP/1.1 200", 12)) { fault(c, strtok(c->line, "\r")); return false; }
    const char *length = strcasestr(c->line, "\r\ncontent-length:");
    c->closing = strcasestr(c->line, "\r\nconnection: close") != NULL;
    c->rest = length ? atol(length + 17) : -1;
    c->state = strcasestr(c->line, "\r\ntransfer-encoding: chunked") ? CHUNK_SIZE : SIZED;
    return true;
}

// Takes one step through what came; gives how many bytes it used, 0: the answer is over or the connection lost.
static size_t step(struct conn *c, const char *data, size_t length) {
    size_t size;
    const char *end;
    switch (c->state) {
    case HEAD: case CHUNK_SIZE: case CHUNK_END: case TRAILER:  // a line at a time
        end = memchr(data, '\n', length);
        size = end ? (size_t)(end - data) + 1 : length;
        if (c->state == CHUNK_END) { if (end) c->state = CHUNK_SIZE; return size; }
        if (c->state == CHUNK_SIZE && !c->rest && isxdigit(*data)) c->rest = 0;
        if (c->state == HEAD) {
            if (c->used + size >= LINE) { lost(c, "a head without end"); return 0; }
            memcpy(c->line + c->used, data, size);
            c->used += size;
            if (end && c->used >= 4 && !memcmp(c->line + c->used - 4, "\r\n\r\n", 4)) {
                if (!read_head(c)) { shut(c); if (asked.rate) idle[idle_count++] = c; else begin(c, time_now); return 0; }
                if (c->state == CHUNK_SIZE) c->rest = 0;
                else if (!c->rest) { finished(c); return 0; }
            }
            return size;
        }
        if (c->state == TRAILER) { if (end) { finished(c); return 0; } return size; }
        for (size_t i = 0; i < size; i++) {
            if (!isxdigit(data[i])) continue;
            c->rest = c->rest * 16 + (isdigit(data[i]) ? data[i] - '0' : (data[i] | 32) - 'a' + 10);
        }
        if (end) c->state = c->rest ? CHUNK : TRAILER;
        return size;
    case SIZED: case CHUNK:
        size = c->rest < 0 || (size_t)c->rest > length ? length : (size_t)c->rest;
        body(c, data, size);
        if (c->rest > 0 && !(c->rest -= (int64_t)size)) {
            if (c->state == SIZED) { finished(c); return 0; }
            c->state = CHUNK_END;
        }
        return size;
    default:
        lost(c, "bytes that nobody asked for");
        return 0;
    }
}

static void hear(struct conn *c) {
    static char buffer[1 << 18];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    time_now = now();
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0 && c->state == SIZED && c->rest < 0) { c->closing = true; finished(c); return; }
    if (got <= 0) { lost(c, "closed"); return; }
    if (counting) bytes += (uint64_t)got;
    for (size_t at = 0, size; at < (size_t)got; at += size)
        if (!(size = step(c, buffer + at, (size_t)got - at))) return;
}

// -- accounts ----------------------------------------------------------------------------------------------------------

static int pids[PIDS], upstream, pid_count;

// User and system time of a process, all its threads, ended ones too, in nanoseconds: the kernel's CPU clock of it.
static int64_t cpu_of(int pid) {
    struct timespec t;
    if (!pid) return 0;
    if (clock_gettime((clockid_t)((~(unsigned)pid << 3) | 2), &t)) die("the CPU clock of a process");
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t cpu(void) {
    int64_t sum = 0;
    for (int i = 0; i < pid_count; i++) sum += cpu_of(pids[i]);
    return sum;
}

static long resident(void) {
    long sum = 0, size, pages;
    char path[64];
    for (int i = 0; i < pid_count; i++) {
        snprintf(path, sizeof path, "/proc/%d/statm", pids[i]);
        FILE *file = fopen(path, "r");
        if (file && fscanf(file, "%ld %ld", &size, &pages) == 2) sum += pages;
        if (file) fclose(file);
    }
    return sum * (sysconf(_SC_PAGESIZE) / 1024);
}

// The most that they had at a time since `reset`; each at its own time.
static long peak(void) {
    long sum = 0, kib;
    char path[64], line[256];
    for (int i = 0; i < pid_count; i++) {
        snprintf(path, sizeof path, "/proc/%d/status", pids[i]);
        FILE *file = fopen(path, "r");
        while (file && fgets(line, sizeof line, file)) if (sscanf(line, "VmHWM: %ld", &kib) == 1) sum += kib;
        if (file) fclose(file);
    }
    return sum;
}

static void reset(void) {
    char path[64];
    for (int i = 0; i < pid_count; i++) {
        snprintf(path, sizeof path, "/proc/%d/clear_refs", pids[i]);
        FILE *file = fopen(path, "w");
        if (file) { fputs("5", file); fclose(file); }
    }
}

static int order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void show(const char *name, struct samples *s) {
    qsort(s->tenths, s->count, sizeof *s->tenths, order);
    double at[] = {0.5, 0.9, 0.99, 1}, values[4] = {0};
    for (int i = 0; i < 4 && s->count; i++) values[i] = s->tenths[(size_t)(at[i] * (double)(s->count - 1))] / 10.0;
    printf(", \"%s\": {\"count\": %zu, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name, s->count,
           values[0], values[1], values[2], values[3]);
}

static void arguments(int count, char **words) {
    for (int letter; (letter = getopt(count, words, "p:f:c:r:w:d:n:m:e:k:xag:i:P:U:")) != -1;) {
        FILE *file;
        switch (letter) {
        case 'p': asked.port = atoi(optarg); break;
        case 'c': asked.connections = atoi(optarg); break;
        case 'r': asked.rate = atof(optarg); break;
        case 'w': asked.warm = atof(optarg); break;
        case 'd': asked.seconds = atof(optarg); break;
        case 'n': asked.pieces = atol(optarg); break;
        case 'm': asked.least = atol(optarg); break;
        case 'e': asked.end = optarg; break;
        case 'k': asked.kind = optarg; break;
        case 'a': asked.around = true; break;
        case 'i': asked.slot = atol(optarg); break;
        case 'x': asked.fresh = true; break;
        case 'g': asked.spread = atof(optarg); break;
        case 'U': upstream = atoi(optarg); break;
        case 'P':
            for (char *word = strtok(optarg, ","); word && pid_count < PIDS; word = strtok(NULL, ",")) pids[pid_count++] = atoi(word);
            break;
        case 'f':
            if (!(file = fopen(optarg, "r")) || !(request = malloc(16 << 20))) die(optarg);
            request_length = fread(request, 1, 16 << 20, file);
            fclose(file);
            break;
        default: exit(2);
        }
    }
    if (!asked.port || !request_length || asked.connections < 1) { fprintf(stderr, "load: -p and -f are needed\n"); exit(2); }
}

int main(int count, char **words) {
    arguments(count, words);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    prctl(PR_SET_TIMERSLACK, 1UL);
    struct epoll_event events_now[256], e = {.events = EPOLLIN, .data.ptr = &timer};
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    all = calloc((size_t)asked.connections, sizeof *all);
    idle = calloc((size_t)asked.connections + 1, sizeof *idle);
    for (struct samples *s, *each[] = {&latency, &first_piece, &age, &stops}, **at = each; at < each + 4; at++)
        if (s = *at, !(s->tenths = malloc(SAMPLES * sizeof *s->tenths))) die("memory");
    if (!all || !idle) die("memory");

    reset();
    long idle_kib = resident();
    int64_t start = now(), opens = start + (int64_t)(asked.warm * 1e9), ends = opens + (int64_t)(asked.seconds * 1e9);
    int64_t opened = 0, used = 0, used_upstream = 0, used_here = 0, due = start;
    int64_t gap = (int64_t)(asked.rate ? 1e9 / asked.rate : asked.spread * 1e9 / asked.connections);
    int begun = 0;
    if (asked.rate) for (int i = asked.connections; i--;) idle[idle_count++] = &all[i];
    int64_t latest = opens + (int64_t)(asked.seconds * 4e9);
    for (;;) {
        time_now = now();
        if (time_now >= ends && (time_now >= latest || (asked.end ? pieces : requests) >= asked.least)) break;
        if (time_now >= ends) ends = time_now + 50000000;
        if (!opened && time_now >= opens) {
            opened = time_now;
            counting = true;
            used = cpu(); used_upstream = cpu_of(upstream); used_here = cpu_of(getpid());
        }
        if (settles && time_now >= settles) {
            if (counting && before) around += cpu() - before;
            settles = 0;
        }
        bool more = asked.rate ? idle_count > 0 : begun < asked.connections;
        for (; more && due <= time_now; due += gap, more = asked.rate ? idle_count > 0 : begun < asked.connections)
            if (asked.rate) begin(idle[--idle_count], due);
            else { begin(&all[begun++], time_now); }
        int64_t wake = opened ? ends : opens;
        if (more && due < wake) wake = due;
        if (settles && settles < wake) wake = settles;
        struct itimerspec at = {.it_value = {.tv_sec = wake / 1000000000, .tv_nsec = wake % 1000000000}};
        static int64_t set_for;
        if (wake != set_for) { timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL); set_for = wake; }
        int many = epoll_wait(poller, events_now, 256, -1);
        if (many < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < many; i++) {
            struct conn *c = events_now[i].data.ptr;
            uint64_t rung;
            if ((void *)c == &timer) { if (read(timer, &rung, sizeof rung) > 0) set_for = 0; continue; }
            if (c->state == CLOSED) continue;
            if (c->state == CONNECTING && events_now[i].events & (EPOLLERR | EPOLLHUP)) { lost(c, "connect"); continue; }
            if (c->state == CONNECTING) c->state = WRITING;
            if (c->state == WRITING && events_now[i].events & EPOLLOUT) write_on(c);
            if (c->state != CLOSED && events_now[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) hear(c);
        }
    }
    used = asked.around ? around : cpu() - used; used_upstream = cpu_of(upstream) - used_upstream; used_here = cpu_of(getpid()) - used_here;
    double seconds = (double)(now() - opened) / 1e9;
    int open = 0;
    for (int i = 0; i < asked.connections; i++) open += all[i].state > HEAD && all[i].pieces;
    printf("{\"seconds\": %.4f, \"requests\": %ld, \"pieces\": %ld, \"events\": %ld, \"bytes\": %lu, \"errors\": %ld, "
           "\"reconnects\": %ld, \"open\": %d, \"idle_kib\": %ld, \"resident_kib\": %ld, \"peak_kib\": %ld, \"cpu_us\": %.1f, \"upstream_us\": %.1f, \"load_us\": %.1f",
           seconds, requests, pieces, events, bytes, errors, reconnects, open, idle_kib, resident(), peak(), (double)used / 1e3,
           (double)used_upstream / 1e3, (double)used_here / 1e3);
    show("latency_us", &latency);
    show("first_us", &first_piece);
    show("age_us", &age);
    show("stop_us", &stops);
    for (char *at = why; *at; at++) if (*at == '"' || *at == '\\' || *at < ' ') *at = '\'';
    printf(", \"why\": \"%s\"}\n", why);
    return 0;
}
