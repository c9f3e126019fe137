#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "http.h"

static void stop(int signal)
{
    (void)signal;
    _Exit(0);
}

int main(int argc, char **argv)
{
    const char *port = getenv("PORT");
    int listener;

    if (argc > 1 && strcmp(argv[1], "--check") == 0)
        return 0;
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    listener = http_listen((unsigned short)atoi(port ? port : "8080"));
    printf("c-service %s listens on %s\n", VERSION, port ? port : "8080");
    fflush(stdout);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection >= 0)
            http_answer(connection, "{\"service\":\"c\",\"version\":\"" VERSION "\"}\n");
    }
}
