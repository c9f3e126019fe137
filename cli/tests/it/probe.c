// What tests need of a step, or around one, and no common tool does: one word, one system call.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static int told(const char *what, long result) {
    printf("%s: %s\n", what, result >= 0 ? "done" : strerrorname_np(errno));
    return 0;
}

// The 32-bit door to sockets, from a 64-bit program: its arguments lie below 4 GiB.
static long socketcall(int family) {
#ifdef __x86_64__
    int *args = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_32BIT | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    args[0] = family, args[1] = SOCK_STREAM, args[2] = 0;
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(102), "b"(1), "c"(args) : "memory", "r8", "r9", "r10", "r11");
    if (result < 0) errno = -result, result = -1;
    return result;
#else
    (void)family;
    errno = ENOSYS;
    return -1;
#endif
}

// A socket by its abstract name, or by its path.
static long connected(const char *name, int abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path + abstract, name, sizeof address.sun_path - 2);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + abstract + strlen(name);
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&address, length);
}

// cap_net_bind_service+ep, as setcap(8) writes it.
static long capable(const char *path) {
    unsigned int data[5] = {0x02000001, 1 << 10, 0, 0, 0};
    return setxattr(path, "security.capability", data, sizeof data, 0);
}

static const struct { const char *name; int number; } calls[] = {
    {"unshare", SYS_unshare}, {"openat2", SYS_openat2}, {"clone3", SYS_clone3},
    {"close_range", SYS_close_range}, {"fsopen", SYS_fsopen}, {"pidfd_open", SYS_pidfd_open},
    {"landlock_create_ruleset", 444}, {"mount", SYS_mount}, {"open_tree", SYS_open_tree},
    {"mount_setattr", 442}, {"keyctl", SYS_keyctl},
};

// Runs a program for which a system call fails as on a kernel without it.
static int without(char **argv) {
    int number = -1, error = strcmp(argv[1], "EPERM") == 0 ? EPERM : ENOSYS;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (strcmp(calls[i].name, argv[0]) == 0) number = calls[i].number;
    if (number < 0) return fprintf(stderr, "unknown call %s\n", argv[0]), 99;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = 4, .filter = code};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return perror("seccomp"), 99;
    execvp(argv[2], argv + 2);
    return perror(argv[2]), 99;
}

// A folder in a folder, so many times.
static int deep(int levels) {
    for (int i = 0; i < levels; i++)
        if (mkdir("d", 0755) || chdir("d")) return perror("deep"), 1;
    return 0;
}

static int many(const char *folder, int count) {
    mkdir(folder, 0755);
    if (chdir(folder)) return perror(folder), 1;
    for (int i = 0; i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "%d", i);
        int file = open(name, O_CREAT | O_WRONLY, 0644);
        if (file < 0 || close(file)) return perror(name), 1;
    }
    return 0;
}

// Exchanges two names for ever.
static void swap(const char *a, const char *b) {
    for (;;) renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE);
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "", *first = argc > 2 ? argv[2] : "";
    if (!strcmp(word, "socket")) return told(word, socket(atoi(first), SOCK_STREAM, 0));
    if (!strcmp(word, "dgram")) return told(word, socket(atoi(first), SOCK_DGRAM, 0));
    if (!strcmp(word, "socketcall")) return told(word, socketcall(atoi(first)));
    if (!strcmp(word, "connect")) return told(word, connected(first, 1));
    if (!strcmp(word, "sti")) return told(word, ioctl(atoi(first), TIOCSTI, "!"));
    if (!strcmp(word, "sti-high")) return told(word, ioctl(atoi(first), 0x100000000ul | TIOCSTI, "!"));
    if (!strcmp(word, "linux")) return told(word, ioctl(atoi(first), TIOCLINUX, "\3"));
    if (!strcmp(word, "sti-tty")) return told(word, open("/dev/tty", O_RDWR));
    if (!strcmp(word, "write")) return told(word, open(first, O_WRONLY));
    if (!strcmp(word, "attribute")) return told(word, setxattr(first, argv[3], "y", 1, 0));
    if (!strcmp(word, "capable")) return told(word, capable(first));
    if (!strcmp(word, "agent")) return told(word, connected(first, 0));
    if (!strcmp(word, "whiteout")) return told(word, mknod(first, S_IFCHR | 0600, 0));
    if (!strcmp(word, "ids")) return printf("%d %d\n", getuid(), geteuid()), 0;
    if (!strcmp(word, "deep")) return deep(atoi(first));
    if (!strcmp(word, "many")) return many(first, atoi(argv[3]));
    if (!strcmp(word, "swap")) swap(first, argv[3]);
    if (!strcmp(word, "without")) return without(argv + 2);
    if (!strcmp(word, "make")) return close(open(first, O_CREAT | O_WRONLY, 0644));
    return fprintf(stderr, "unknown word %s\n", word), 99;
}
