/* The load: many WebSocket clients and one producer, on one core, for one fan-out server.
 *
 * It connects the clients, waits until each is subscribed, lets a thread write events to the
 * server's own way in, and reports as one line of JSON what arrived, when, and what it cost the
 * server. Every event carries a stamp, "@T" and 19 digits (CLOCK_MONOTONIC in ns). A delivery is
 * one stamp seen by one client: no JSON is decoded, so that the client is not what is measured.
 * What is said to the server, and in which dialect, stands in two files (see struct list).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define STAMP 19       /* digits after "@T" */
#define CONNECTING 64  /* clients under way at once: below any server's backlog */
#define GATHER 256     /* events that are due together go out in one write, at most so many */
#define LATE (SECOND / 1000)

/* Raw texts, one behind the other: a file of them, each ended by '\0'. */
struct list { char **item; size_t *size; size_t count; };

struct client {
    int fd;
    bool open, ready;      /* the 101 is there; it is subscribed */
    uint64_t last;         /* stamp of the newest delivery */
    char *rest;            /* the beginning of a frame that has not come whole */
    size_t rest_size;
    struct list inits;     /* what it says to subscribe, message by message */
};

static struct {
    int port, clients, slow, pid;
    double rate, warm, seconds, settle;
    bool binary, socketio;
    const char *path, *headers, *ready, *feed, *greeting, *inits, *events;
} want = {.path = "/", .headers = "", .ready = "", .greeting = "", .clients = 1};

static struct client *clients;
static int poller, ready_clients, closed_clients;
static uint64_t delivered, disorder;
static bool in_window;
static uint64_t window_delivered;
static atomic_bool stop;
static atomic_ulong published;

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* --- latency: a histogram of microseconds, exact to 128, beyond it to 1 in 128 ------------- */

#define FINE 128
static uint64_t counts[FINE * 40], samples;

static void note_latency(uint64_t us) {
    unsigned shift = us < FINE ? 0 : 63 - __builtin_clzll(us) - 7;
    unsigned slot = us < FINE ? us : (shift + 1) * FINE + (us >> shift) - FINE;
    counts[slot < FINE * 40 ? slot : FINE * 40 - 1]++;
    samples++;
}

static double latency_ms(double share) {
    uint64_t before = 0;
    for (unsigned slot = 0; slot < FINE * 40; slot++) {
        before += counts[slot];
        if (before && before >= share * samples)
            return (slot < FINE ? slot : (double)((uint64_t)(FINE + slot % FINE) << (slot / FINE - 1))) / 1000;
    }
    return 0;
}

/* --- what the server uses ------------------------------------------------------------------- */

static double cpu_seconds(void) {
    clockid_t clock;
    struct timespec t = {0};
    if (want.pid && clock_getcpuclockid(want.pid, &clock) == 0)
        clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double own_cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double rss_kib(void) {
    char name[64];
    long pages = 0;
    snprintf(name, sizeof name, "/proc/%d/statm", want.pid);
    FILE *file = want.pid ? fopen(name, "r") : NULL;
    if (file) {
        if (fscanf(file, "%*d %ld", &pages) != 1)
            pages = 0;
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024.0);
}

/* --- the clients ---------------------------------------------------------------------------- */

static struct list split(char *text, size_t size, char end) {
    struct list list = {0};
    while (size) {
        char *found = memchr(text, end, size);
        size_t length = found ? (size_t)(found - text) : size;
        list.item = realloc(list.item, (list.count + 1) * sizeof *list.item);
        list.size = realloc(list.size, (list.count + 1) * sizeof *list.size);
        list.item[list.count] = text;
        list.size[list.count++] = length;
        text += length + (found != NULL);
        size -= length + (found != NULL);
    }
    return list;
}

static struct list read_list(const char *name) {
    FILE *file = fopen(name, "r");
    if (!file || fseek(file, 0, SEEK_END))
        die("%s: %s", name, strerror(errno));
    size_t size = ftell(file);
    char *text = malloc(size + 1);
    rewind(file);
    if (fread(text, 1, size, file) != size)
        die("%s: cannot be read", name);
    fclose(file);
    return split(text, size, '\0');
}

static void send_frame(struct client *c, int opcode, const char *payload, size_t size) {
    unsigned char frame[8 + 65535], *end = frame;
    if (size > 65535)
        die("a message of %zu bytes is too long for this client", size);
    *end++ = 0x80 | opcode;
    *end++ = 0x80 | (size < 126 ? size : 126);
    if (size >= 126) {
        *end++ = size >> 8;
        *end++ = size;
    }
    memset(end, 0, 4); /* masked with zeros: as valid as any mask, and nothing to compute */
    memcpy(end + 4, payload, size);
    if (write(c->fd, frame, end + 4 + size - frame) < 0)
        die("a client cannot write: %s", strerror(errno));
}

static void say(struct client *c, size_t from, size_t to) {
    for (size_t i = from; i < to && i < c->inits.count; i++)
        send_frame(c, want.binary ? 2 : 1, c->inits.item[i], c->inits.size[i]);
}

static void count_stamps(struct client *c, const char *at, size_t size, uint64_t time) {
    const char *end = at + size;
    while ((at = memmem(at, end - at, "@T", 2)) && end - at >= 2 + STAMP) {
        uint64_t stamp = 0;
        for (const char *digit = at += 2; digit < at + STAMP; digit++)
            stamp = stamp * 10 + (*digit - '0');
        at += STAMP;
        delivered++;
        disorder += stamp <= c->last; /* stamps only grow: a repeated event shows here too */
        c->last = stamp;
        if (in_window) {
            window_delivered++;
            note_latency(time > stamp ? (time - stamp) / 1000 : 0);
        }
    }
}

static void on_message(struct client *c, const char *text, size_t size, uint64_t time) {
    if (want.socketio && size == 1 && text[0] == '2')
        send_frame(c, 1, "3", 1);
    if (!c->ready) {
        if (want.socketio && size && text[0] == '0')
            say(c, 0, 1);
        if (want.socketio && size > 1 && !memcmp(text, "40", 2))
            say(c, 1, c->inits.count);
        if (memmem(text, size, want.ready, strlen(want.ready))) {
            c->ready = true;
            ready_clients++;
        }
    }
    count_stamps(c, text, size, time);
}

/* Read the 101; return how many bytes it has, 0 when it is not whole. */
static size_t on_response(struct client *c, const char *text, size_t size) {
    const char *end = memmem(text, size, "\r\n\r\n", 4);
    if (!end)
        return 0;
    if (memcmp(text, "HTTP/1.1 101", 12))
        die("no upgrade: %.*s", (int)(end - text), text);
    c->open = true;
    if (!want.socketio)
        say(c, 0, c->inits.count);
    return end + 4 - text;
}

/* Read one frame; return how many bytes it has, 0 when it is not whole. */
static size_t on_frame(struct client *c, const char *text, size_t size, uint64_t time) {
    const unsigned char *b = (const unsigned char *)text;
    if (size < 2)
        return 0;
    size_t head = 2, length = b[1] & 127;
    if (length >= 126) {
        size_t bytes = length == 126 ? 2 : 8;
        if (size < 2 + bytes)
            return 0;
        for (length = 0; head < 2 + bytes; head++)
            length = length << 8 | b[head];
    }
    if (size < head + length)
        return 0;
    if ((b[0] & 15) == 9)
        send_frame(c, 10, text + head, length);
    else if ((b[0] & 15) < 8)
        on_message(c, text + head, length, time);
    return head + length;
}

static void on_readable(struct client *c) {
    static char buffer[1 << 22];
    memcpy(buffer, c->rest, c->rest_size);
    ssize_t got = read(c->fd, buffer + c->rest_size, sizeof buffer - c->rest_size);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (!c->ready)
            die("the server closed a client before it was subscribed");
        closed_clients++;
        close(c->fd);
        return;
    }
    size_t size = c->rest_size + got, done = 0, step;
    uint64_t time = now();
    do {
        step = c->open ? on_frame(c, buffer + done, size - done, time)
                       : on_response(c, buffer + done, size - done);
        done += step;
    } while (step);
    c->rest_size = size - done;
    c->rest = realloc(c->rest, c->rest_size + 1);
    memcpy(c->rest, buffer + done, c->rest_size);
}

static void serve_for(int ms) {
    struct epoll_event events[512];
    int count = epoll_wait(poller, events, 512, ms);
    for (int i = 0; i < count; i++)
        on_readable(events[i].data.ptr);
}

static void serve_until(uint64_t end) {
    for (uint64_t time = now(); time < end; time = now())
        serve_for((end - time) / 1000000 + 1);
}

static int connect_to(int family, const void *address, socklen_t size, const char *name) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (family == AF_INET)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd < 0 || connect(fd, address, size))
        die("%s: %s", name, strerror(errno));
    return fd;
}

static int connect_tcp(int port) {
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return connect_to(AF_INET, &a, sizeof a, "loopback");
}

static void start_client(struct client *c) {
    char head[8192];
    int size = snprintf(head, sizeof head,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: bG9hZCBvZiBjcnlwdG93cw==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
        want.path, want.port, want.headers);
    c->fd = connect_tcp(want.port);
    if (size >= (int)sizeof head || write(c->fd, head, size) != size)
        die("the request head could not be sent");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
}

static void connect_clients(void) {
    struct list inits = read_list(want.inits);
    uint64_t deadline = now() + 120 * SECOND;
    clients = calloc(want.clients, sizeof *clients);
    for (int started = 0; ready_clients < want.clients; serve_for(50)) {
        for (; started < want.clients && started - ready_clients < CONNECTING; started++) {
            size_t i = started % inits.count; /* messages are parted by RS, which none contains */
            clients[started].inits = split(inits.item[i], inits.size[i], '\x1e');
            start_client(&clients[started]);
        }
        if (now() > deadline)
            die("only %d of %d clients were subscribed in time", ready_clients, want.clients);
    }
}

/* The first clients fall silent: connected, never read again, their kernel buffers small. */
static void silence_slow_clients(void) {
    int size = 4096;
    for (int i = 0; i < want.slow && i < want.clients; i++) {
        setsockopt(clients[i].fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
        epoll_ctl(poller, EPOLL_CTL_DEL, clients[i].fd, NULL);
    }
}

/* --- the producer --------------------------------------------------------------------------- */

static int connect_feed(void) {
    if (!strncmp(want.feed, "tcp:", 4))
        return connect_tcp(atoi(want.feed + 4));
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strncmp(want.feed, "unix:", 5) || strlen(want.feed + 5) >= sizeof a.sun_path)
        die("%s is neither unix:PATH nor tcp:PORT", want.feed);
    strcpy(a.sun_path, want.feed + 5);
    return connect_to(AF_UNIX, &a, sizeof a, want.feed);
}

static void write_all(int fd, const char *text, size_t size) {
    while (size) {
        ssize_t wrote = write(fd, text, size);
        if (wrote < 0)
            die("the feed cannot be written: %s", strerror(errno));
        text += wrote;
        size -= wrote;
    }
}

/* An event is stamped when it is written. One that the server kept waiting by not reading was due
 * before, and its delay counts from then: else a server would look faster the more it stalls. */
static uint64_t next_stamp(uint64_t due) {
    static uint64_t last;
    uint64_t time = now();
    uint64_t stamp = want.rate > 0 && time > due + LATE ? due : time;
    return last = stamp > last ? stamp : last + 1;
}

static void *produce(void *unused) {
    struct list events = read_list(want.events);
    int fd = connect_feed();
    static char out[GATHER * 4096], answers[65536], digits[STAMP + 1];
    uint64_t began = now(), number = 0;
    double gap = want.rate > 0 ? SECOND / want.rate : 0;

    (void)unused;
    write_all(fd, want.greeting, strlen(want.greeting));
    while (!atomic_load(&stop)) {
        uint64_t time = now(), due = began + number * gap;
        if (time < due) {
            struct timespec pause = {(due - time) / SECOND, (due - time) % SECOND};
            nanosleep(&pause, NULL);
        }
        size_t size = 0, gathered = 0;
        for (time = now(); gathered < GATHER && due <= time; due = began + ++number * gap) {
            size_t i = number % events.count;
            if (events.size[i] > 4096)
                die("an event of %zu bytes is too long", events.size[i]);
            memcpy(out + size, events.item[i], events.size[i]);
            snprintf(digits, sizeof digits, "%019llu", (unsigned long long)next_stamp(due));
            char *mark = memmem(out + size, events.size[i], "@T", 2);
            if (!mark)
                die("an event has no stamp");
            memcpy(mark + 2, digits, STAMP);
            size += events.size[i];
            gathered++;
        }
        write_all(fd, out, size);
        atomic_fetch_add(&published, gathered);
        while (recv(fd, answers, sizeof answers, MSG_DONTWAIT) > 0)
            ;
    }
    shutdown(fd, SHUT_WR);
    return NULL;
}

/* Wait until nothing comes any more: half a second of silence, ten seconds at most. */
static void drain(void) {
    uint64_t before, end = now() + 10 * SECOND;
    do {
        before = delivered;
        serve_until(now() + SECOND / 2);
    } while (delivered != before && now() < end);
}

/* --- the run -------------------------------------------------------------------------------- */

static void read_options(int argc, char **argv) {
    enum { PORT, PATH, HEADERS, CLIENTS, SLOW, INITS, READY, SOCKETIO, BINARY, FEED, GREETING,
           EVENTS, RATE, SETTLE, WARM, SECONDS, PID };
    const struct option options[] = {
        {"port", 1, 0, PORT}, {"path", 1, 0, PATH}, {"headers", 1, 0, HEADERS},
        {"clients", 1, 0, CLIENTS}, {"slow", 1, 0, SLOW}, {"inits", 1, 0, INITS},
        {"ready", 1, 0, READY}, {"socketio", 0, 0, SOCKETIO}, {"binary", 0, 0, BINARY},
        {"feed", 1, 0, FEED}, {"greeting", 1, 0, GREETING}, {"events", 1, 0, EVENTS},
        {"rate", 1, 0, RATE}, {"settle", 1, 0, SETTLE}, {"warm", 1, 0, WARM},
        {"seconds", 1, 0, SECONDS}, {"pid", 1, 0, PID}, {0}};
    for (int key; (key = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (key) {
        case PORT: want.port = atoi(optarg); break;
        case PATH: want.path = optarg; break;
        case HEADERS: want.headers = optarg; break;
        case CLIENTS: want.clients = atoi(optarg); break;
        case SLOW: want.slow = atoi(optarg); break;
        case INITS: want.inits = optarg; break;
        case READY: want.ready = optarg; break;
        case SOCKETIO: want.socketio = true; break;
        case BINARY: want.binary = true; break;
        case FEED: want.feed = optarg; break;
        case GREETING: want.greeting = optarg; break;
        case EVENTS: want.events = optarg; break;
        case RATE: want.rate = atof(optarg); break;
        case SETTLE: want.settle = atof(optarg); break;
        case WARM: want.warm = atof(optarg); break;
        case SECONDS: want.seconds = atof(optarg); break;
        case PID: want.pid = atoi(optarg); break;
        default: exit(2);
        }
    if (!want.port || want.clients < 1 || !want.inits || (want.feed && !want.events))
        die("--port, --clients and --inits are needed, and --events with --feed");
}

static void measure_delivery(void) {
    pthread_t producer;
    if (pthread_create(&producer, NULL, produce, NULL))
        die("no thread for the producer");
    serve_until(now() + want.warm * SECOND);

    uint64_t began = now(), published_before = atomic_load(&published);
    double server = cpu_seconds(), own = own_cpu_seconds();
    in_window = true;
    serve_until(began + want.seconds * SECOND);
    in_window = false;
    double seconds = (now() - began) / (double)SECOND;
    server = cpu_seconds() - server;
    own = own_cpu_seconds() - own;
    uint64_t in_time = atomic_load(&published) - published_before;
    double rss = rss_kib();

    atomic_store(&stop, true);
    drain(); /* the producer may be held up by a full socket, which this frees */
    pthread_join(producer, NULL);
    drain();
    printf(",\"seconds\":%.6f,\"server_cpu\":%.6f,\"client_cpu\":%.6f,\"rss_kib\":%.0f"
           ",\"published\":%lu,\"published_in_window\":%lu,\"delivered\":%lu,\"delivered_in_window\":%lu"
           ",\"disorder\":%lu,\"closed\":%d,\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f"
           ",\"p999_ms\":%.3f,\"max_ms\":%.3f",
           seconds, server, own, rss, (unsigned long)atomic_load(&published), (unsigned long)in_time,
           (unsigned long)delivered, (unsigned long)window_delivered, (unsigned long)disorder,
           closed_clients, latency_ms(.5), latency_ms(.9), latency_ms(.99), latency_ms(.999),
           latency_ms(1));
}

int main(int argc, char **argv) {
    struct rlimit files;
    read_options(argc, argv);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN); /* a server that goes away is told by write() */
    poller = epoll_create1(EPOLL_CLOEXEC);

    double cpu = cpu_seconds(), rss = rss_kib();
    uint64_t began = now();
    connect_clients();
    double connect_seconds = (now() - began) / (double)SECOND;
    double connect_cpu = cpu_seconds() - cpu;
    silence_slow_clients();
    serve_until(now() + want.settle * SECOND);
    printf("{\"clients\":%d,\"connect_seconds\":%.6f,\"connect_cpu\":%.6f,\"idle_kib\":%.0f",
           want.clients, connect_seconds, connect_cpu, rss_kib() - rss);
    if (want.feed)
        measure_delivery();
    puts("}");
    return 0;
}
