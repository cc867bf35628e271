/* One worker with librabbitmq: what the broker and the network can do when the consumer costs next to nothing.
 *
 *     BENCH_URL=amqp://... BENCH_QUEUE=name [BENCH_NOTES=FILE] worker
 *
 * Durable queue, prefetch 1, acknowledged after the work. The work and the notes are those of tasks.py and notes.py: a
 * body that begins with a number is seconds to sleep; its second word is the task's number. Made by:
 * cc -O2 -o worker worker.c -lrabbitmq
 */
#include <errno.h>
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int notes = -1;

static void die(const char *what) {
    fprintf(stderr, "worker: %s failed\n", what);
    exit(1);
}

static void demand(amqp_connection_state_t connection, const char *what) {
    if (amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL) die(what);
}

static struct timespec now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at;
}

static void note(uint32_t has_ended, uint64_t number, struct timespec at) {
    if (notes < 0) return;
    struct {
        uint32_t pid, has_ended;
        uint64_t number;
        double at;
        char padding[8];
    } record = {(uint32_t)getpid(), has_ended, number, (double)at.tv_sec + 1e-9 * (double)at.tv_nsec, {0}};
    if (write(notes, &record, sizeof record) != sizeof record) die("a note");
}

static void work(amqp_bytes_t body) {
    struct timespec began = now();
    char text[32];
    size_t length = body.len < sizeof text - 1 ? body.len : sizeof text - 1;
    if (length == 0) return;
    memcpy(text, body.bytes, length);
    text[length] = '\0';
    if (text[0] < '0' || text[0] > '9') return;
    char *rest_of_it;
    double seconds = strtod(text, &rest_of_it);
    uint64_t number = strtoull(rest_of_it, NULL, 10);
    struct timespec rest = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    note(0, number, began);
    while (nanosleep(&rest, &rest) != 0 && errno == EINTR) continue;
    note(1, number, now());
}

int main(void) {
    struct amqp_connection_info broker;
    amqp_default_connection_info(&broker);
    char *url = strdup(getenv("BENCH_URL"));
    if (amqp_parse_url(url, &broker) != AMQP_STATUS_OK) die("the url");
    amqp_bytes_t queue = amqp_cstring_bytes(getenv("BENCH_QUEUE"));
    if (getenv("BENCH_NOTES")) {
        notes = open(getenv("BENCH_NOTES"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (notes < 0) die("opening the notes");
    }

    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (amqp_socket_open(socket, broker.host, broker.port) != AMQP_STATUS_OK) die("connecting");
    if (amqp_login(connection, broker.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 60, AMQP_SASL_METHOD_PLAIN, broker.user,
                   broker.password).reply_type != AMQP_RESPONSE_NORMAL) die("the login");
    amqp_channel_open(connection, 1);
    demand(connection, "channel.open");
    amqp_queue_declare(connection, 1, queue, 0, 1, 0, 0, amqp_empty_table);
    demand(connection, "queue.declare");
    amqp_basic_qos(connection, 1, 0, 1, 0);
    demand(connection, "basic.qos");
    amqp_basic_consume(connection, 1, queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    demand(connection, "basic.consume");

    for (;;) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        struct timeval patience = {20, 0};
        amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, &patience, 0);
        if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION && reply.library_error == AMQP_STATUS_TIMEOUT) continue;
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) die("consuming");
        work(envelope.message.body);
        if (amqp_basic_ack(connection, 1, envelope.delivery_tag, 0) != AMQP_STATUS_OK) die("basic.ack");
        amqp_destroy_envelope(&envelope);
    }
}
