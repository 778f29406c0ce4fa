/* The floor: what the send() calls of a fan-out cost by themselves, and the least any server pays.
 *
 * It frames the lines of the feed and sends all that came together to every client with one call.
 * It has no routing, no bounds and no way to refuse anything, and knows only the handshake of
 * load.c (whose key is fixed). Arguments: port, path of the feed socket.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST 16384 /* descriptors */

static const char UPGRADE[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: g5lGi9gTJP0rPWllAGP20nhdYz0=\r\n\r\n";
static const char CONFIRMED[] = "\x81\x21{\"type\":\"subscription_confirmed\"}";

static int poller, clients[MOST], client_count;
static bool upgraded[MOST];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd < 0 || fd >= MOST || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        die("watch");
}

static int listen_on(int family, const void *address, socklen_t size) {
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, address, size) || listen(fd, 4096))
        die("listen");
    watch(fd);
    return fd;
}

static void on_client(int fd) {
    char text[8192];
    ssize_t size = read(fd, text, sizeof text);
    if (size <= 0) {
        for (int i = 0; i < client_count; i++)
            if (clients[i] == fd)
                clients[i--] = clients[--client_count];
        upgraded[fd] = false;
        close(fd);
    } else if (upgraded[fd]) {
        send(fd, CONFIRMED, sizeof CONFIRMED - 1, MSG_NOSIGNAL);
    } else {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        send(fd, UPGRADE, sizeof UPGRADE - 1, MSG_NOSIGNAL);
        upgraded[fd] = true;
        clients[client_count++] = fd;
    }
}

static size_t put_frame(char *out, const char *line, size_t size) {
    size_t head = 0;
    out[head++] = (char)0x81;
    out[head++] = size < 126 ? size : 126;
    if (size >= 126) {
        out[head++] = size >> 8;
        out[head++] = size;
    }
    memcpy(out + head, line, size);
    return head + size;
}

static void on_feed(int fd) {
    static char in[1 << 18], out[1 << 19];
    static size_t held;
    ssize_t got = read(fd, in + held, sizeof in - held);
    if (got <= 0) {
        close(fd);
        return;
    }
    held += got;
    size_t done = 0, size = 0;
    for (char *end; (end = memchr(in + done, '\n', held - done)); done = end + 1 - in)
        size += put_frame(out + size, in + done, end - in - done);
    memmove(in, in + done, held -= done);
    for (int i = 0; size && i < client_count; i++)
        if (send(clients[i], out, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
            die("a client does not keep up");
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    strncpy(local.sun_path, argv[2], sizeof local.sun_path - 1);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int feeds = listen_on(AF_UNIX, &local, sizeof local), feed = -1;
    int doors = listen_on(AF_INET, &tcp, sizeof tcp);

    for (;;) {
        struct epoll_event events[256];
        int count = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == feeds)
                watch(feed = accept(fd, NULL, NULL));
            else if (fd == doors)
                watch(accept(fd, NULL, NULL));
            else if (fd == feed)
                on_feed(fd);
            else
                on_client(fd);
        }
    }
}
