/* Preloaded into a worker: makes chosen calls on the store's log fail, and writes down what the
 * disk was told, in the order in which it was told.
 *
 *   SHIM_DIR    only files below this directory are looked at
 *   SHIM_FAULT  call:action:nth:times   as fdatasync:EIO:3:1; call is write or fdatasync, action is
 *               EIO, ENOSPC, short (half is written), full (half, then ENOSPC), half (then death),
 *               before (death), after (death). Counted per process, on files named log*.
 *   SHIM_WHILE  a fault happens only while this file exists
 *   SHIM_TRACE  the file that the records are appended to
 *   SHIM_FAILED the file in which the processes tell one another which files failed to sync
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct record {
    uint32_t op, thread;
    uint64_t inode;
    int64_t offset, nanoseconds;
    uint32_t path, data; /* how many bytes of each follow */
};

/* As in the kernel (errseq): each open file on which a sync failed is told so, once. Its own next
 * sync says EIO, whoever's sync it was that failed. */
struct failed {
    uint64_t inode, born, count;
};
enum { FAILED = 64 };
static struct failed *failures;
static uint64_t told[FAILED];

static char directory[PATH_MAX], awaited[PATH_MAX], call[32], action[32];
static long nth, times, counted;
static int trace = -1;

__attribute__((constructor)) static void begin(void) {
    const char *value = getenv("SHIM_DIR");
    if (value) snprintf(directory, sizeof directory, "%s", value);
    if ((value = getenv("SHIM_WHILE"))) snprintf(awaited, sizeof awaited, "%s", value);
    if ((value = getenv("SHIM_FAULT")))
        if (sscanf(value, "%31[^:]:%31[^:]:%ld:%ld", call, action, &nth, &times) != 4) abort();
    if ((value = getenv("SHIM_TRACE")))
        if ((trace = open(value, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)) < 0) abort();
    if ((value = getenv("SHIM_FAILED"))) {
        int fd = open(value, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        size_t size = FAILED * sizeof *failures;
        if (fd < 0 || ftruncate(fd, size)) abort();
        failures = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (failures == MAP_FAILED) abort();
        close(fd);
    }
}

static void *next(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

static int below(const char *path) {
    size_t length = strlen(directory);
    return length && !strncmp(path, directory, length) && (path[length] == '/' || !path[length]);
}

/* The path of an open file, if it is one of ours. */
static int ours(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int is_log(const char *path) {
    const char *name = strrchr(path, '/');
    return name && !strncmp(name, "/log", 4);
}

/* Whether this call is one that must fail. */
static int struck(const char *which, const char *path) {
    if (strcmp(call, which) || !is_log(path)) return 0;
    if (*awaited && access(awaited, F_OK)) return 0;
    long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
    return number >= nth && number < nth + times;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void record(char op, int fd, int64_t offset, const char *path, const void *data, size_t size) {
    if (trace < 0) return;
    int kept = errno;
    struct stat status = {0};
    struct timespec now;
    if (fd >= 0) fstat(fd, &status);
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct record head = {op, syscall(SYS_gettid), status.st_ino, offset,
                          now.tv_sec * 1000000000LL + now.tv_nsec, strlen(path), size};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, size}};
    if (writev(trace, parts, 3) != (ssize_t)(sizeof head + head.path + size)) abort();
    errno = kept;
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = next("write");
    char path[PATH_MAX];
    if (!*directory || !ours(fd, path)) return real(fd, data, size);
    int strike = struck("write", path);
    size_t half = size;
    if (strike) {
        if (!strcmp(action, "before")) die();
        if (!strcmp(action, "EIO")) return errno = EIO, -1;
        if (!strcmp(action, "ENOSPC")) return errno = ENOSPC, -1;
        if (!strcmp(action, "full") && size < 2) return errno = ENOSPC, -1;
        if (strcmp(action, "after")) half = (size + 1) / 2;
    }
    ssize_t done = real(fd, data, half);
    if (done > 0) record('W', fd, lseek(fd, 0, SEEK_CUR) - done, path, data, done);
    if (strike && (!strcmp(action, "half") || !strcmp(action, "after"))) die();
    return done;
}

static int cut(const char *name, int fd, off_t size) {
    int (*real)(int, off_t) = next(name);
    int result = real(fd, size);
    char path[PATH_MAX];
    if (!result && *directory && ours(fd, path)) record('T', fd, size, path, "", 0);
    return result;
}

int ftruncate(int fd, off_t size) { return cut("ftruncate", fd, size); }
int ftruncate64(int fd, off_t size) { return cut("ftruncate64", fd, size); }

/* The place of a file among those that failed; one that is new there, if it is to be added. */
static int place(int fd, int add) {
    struct statx status;
    if (!failures || statx(fd, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status)) return -1;
    uint64_t born = status.stx_btime.tv_sec * 1000000000ULL + status.stx_btime.tv_nsec;
    for (int at = 0; at < FAILED; at++) {
        struct failed *one = &failures[at];
        uint64_t nobody = 0;
        /* An inode's number is used again, but not with the same time of birth. */
        if (add) __atomic_compare_exchange_n(&one->born, &nobody, born, 0, 5, 5);
        if (__atomic_load_n(&one->born, __ATOMIC_SEQ_CST) == born) {
            if (add) one->inode = status.stx_ino;
            if (one->inode == status.stx_ino) return at;
        }
        if (!one->born) return -1;
    }
    abort();
}

static int synced(const char *name, int fd) {
    int (*real)(int) = next(name);
    char path[PATH_MAX];
    if (!*directory || !ours(fd, path)) return real(fd);
    record('B', fd, 0, path, "", 0);
    int strike = struck("fdatasync", path);
    if (strike && !strcmp(action, "before")) die();
    int result = strike && !strcmp(action, "EIO") ? (errno = EIO, -1) : real(fd);
    int at = place(fd, result);
    if (result && at >= 0) told[at] = __atomic_add_fetch(&failures[at].count, 1, __ATOMIC_SEQ_CST);
    if (!result && at >= 0 && told[at] < failures[at].count) {
        told[at] = failures[at].count;
        return errno = EIO, -1;
    }
    record('E', fd, result, path, "", 0);
    if (strike && !strcmp(action, "after")) die();
    return result;
}

int fdatasync(int fd) { return synced("fdatasync", fd); }
int fsync(int fd) { return synced("fsync", fd); }

int rename(const char *old, const char *new) {
    int (*real)(const char *, const char *) = next("rename");
    int result = real(old, new);
    if (!result && below(old)) record('R', -1, 0, old, new, strlen(new));
    return result;
}

int link(const char *old, const char *new) {
    int (*real)(const char *, const char *) = next("link");
    int result = real(old, new);
    if (!result && below(old)) record('L', -1, 0, old, new, strlen(new));
    return result;
}

int unlink(const char *path) {
    int (*real)(const char *) = next("unlink");
    int result = real(path);
    if (!result && below(path)) record('U', -1, 0, path, "", 0);
    return result;
}
