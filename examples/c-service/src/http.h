#ifndef HTTP_H
#define HTTP_H

/* Opens a listening TCP socket on every IPv4 address; ends the program on failure. */
int http_listen(unsigned short port);

/* Answers one connection with a JSON body, then closes it. */
void http_answer(int connection, const char *body);

#endif
