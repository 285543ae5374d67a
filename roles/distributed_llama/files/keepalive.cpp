// Linked into distributed-llama in front of accept() and connect() (ld --wrap): it sets no keepalive of its own. A worker that waits
// for its root then waits for ever after the root lost its power, and has closed the port on which a new root would come.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

extern "C" {
int __real_accept(int socket, sockaddr *address, socklen_t *size);
int __real_connect(int socket, const sockaddr *address, socklen_t size);

static void keep_alive(int socket) {
    // Gone after 10 + 3 * 3 s without an answer. The far end's kernel answers, also while its program computes.
    const int on = 1, idle_s = 10, interval_s = 3, probes = 3;
    const unsigned unanswered_ms = 20000;
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered_ms, sizeof unanswered_ms);
}

int __wrap_accept(int socket, sockaddr *address, socklen_t *size) {
    const int accepted = __real_accept(socket, address, size);
    if (accepted >= 0)
        keep_alive(accepted);
    return accepted;
}

int __wrap_connect(int socket, const sockaddr *address, socklen_t size) {
    keep_alive(socket);
    return __real_connect(socket, address, size);
}
}
