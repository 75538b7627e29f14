// Loaded before the C library (LD_PRELOAD): makes reads and writes of some files fail, end early, lie or take long, and shifts
// the wall clock. What happens is read from a page shared with the test, FAULTS_PAGE, so that it can change while the program
// runs; only files whose path contains FAULTS_PATH are touched.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

// The order of these is that of Faults.FIELDS in server.py. "every n" means one call in n, 0 none.
struct page {
    _Atomic int64_t reads, writes, syncs;             // calls on files that are touched, counted
    _Atomic int64_t fail_read_every, fail_read_at;    // EIO
    _Atomic int64_t short_read_every, short_read_at;  // fewer bytes than asked for, but some
    _Atomic int64_t end_read_every, end_read_at;      // as if the file ended here
    _Atomic int64_t flip_every, flip_at;              // one bit of what a read brings is another
    _Atomic int64_t slow_every, slow_ms;              // reads, writes and syncs
    _Atomic int64_t fail_write_every, write_errno;
    _Atomic int64_t fail_sync_every, sync_errno;
    _Atomic int64_t clock_seconds;  // added to CLOCK_REALTIME
    _Atomic int64_t injected;       // what was done, counted
};

static struct page nothing, *page = &nothing;
static const char *touched_path;
enum { FILES = 1 << 16 };
// By descriptor: 0 not asked yet, 1 touched, 2 left alone. Forgotten on close.
static _Atomic unsigned char known[FILES];

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("FAULTS_PAGE");
    touched_path = getenv("FAULTS_PATH");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) page = map;
    close(fd);
}

static int touched(int fd) {
    if (page == &nothing || !touched_path || fd < 0 || fd >= FILES) return 0;
    unsigned char state = atomic_load(&known[fd]);
    if (state == 0) {
        char link[64], path[4096];
        struct stat info;
        char digits[16];
        int n = 0;
        for (int rest = fd; n == 0 || rest > 0; rest /= 10) digits[n++] = (char)('0' + rest % 10);
        strcpy(link, "/proc/self/fd/");
        size_t at = strlen(link);
        while (n > 0) link[at++] = digits[--n];
        link[at] = 0;
        int saved = errno;
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length < 0) length = 0;
        path[length] = 0;
        state = strstr(path, touched_path) && fstat(fd, &info) == 0 && S_ISREG(info.st_mode) ? 1 : 2;
        errno = saved;
        atomic_store(&known[fd], state);
    }
    return state == 1;
}

static int due(int64_t n, int64_t every, int64_t at) {
    int hit = (every > 0 && n % every == 0) || (at > 0 && n == at);
    if (hit) atomic_fetch_add(&page->injected, 1);
    return hit;
}

static void slow(int64_t n) {
    if (page->slow_every > 0 && n % page->slow_every == 0) {
        struct timespec wait = {page->slow_ms / 1000, page->slow_ms % 1000 * 1000000};
        nanosleep(&wait, NULL);
        atomic_fetch_add(&page->injected, 1);
    }
}

// What a read of `size` bytes is to come to: -1 an error, else the bytes to ask for.
static ssize_t fate_of_read(int64_t n, size_t size) {
    slow(n);
    if (due(n, page->fail_read_every, page->fail_read_at)) {
        errno = EIO;
        return -1;
    }
    if (due(n, page->end_read_every, page->end_read_at)) return 0;
    // Past the page cache, bytes come in whole sectors.
    if (size > 4096 && due(n, page->short_read_every, page->short_read_at)) return (ssize_t)(size / 2 / 4096 * 4096 + 4096 * (size < 8192));
    return (ssize_t)size;
}

static ssize_t flip(int64_t n, ssize_t size, unsigned char *bytes) {
    if (size > 0 && due(n, page->flip_every, page->flip_at)) bytes[size / 3] ^= 0x10;
    return size;
}

static int fails_write(void) {
    int64_t n = atomic_fetch_add(&page->writes, 1) + 1;
    slow(n);
    if (!due(n, page->fail_write_every, 0)) return 0;
    errno = (int)page->write_errno;
    return 1;
}

static int fails_sync(void) {
    int64_t n = atomic_fetch_add(&page->syncs, 1) + 1;
    slow(n);
    if (!due(n, page->fail_sync_every, 0)) return 0;
    errno = (int)page->sync_errno;
    return 1;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t read(int fd, void *to, size_t size) {
    REAL(read);
    if (!touched(fd)) return real(fd, to, size);
    int64_t n = atomic_fetch_add(&page->reads, 1) + 1;
    ssize_t part = fate_of_read(n, size);
    return part <= 0 ? part : flip(n, real(fd, to, (size_t)part), to);
}

ssize_t pread(int fd, void *to, size_t size, off_t at) {
    REAL(pread);
    if (!touched(fd)) return real(fd, to, size, at);
    int64_t n = atomic_fetch_add(&page->reads, 1) + 1;
    ssize_t part = fate_of_read(n, size);
    return part <= 0 ? part : flip(n, real(fd, to, (size_t)part, at), to);
}

ssize_t pread64(int fd, void *to, size_t size, off64_t at) {
    REAL(pread64);
    if (!touched(fd)) return real(fd, to, size, at);
    int64_t n = atomic_fetch_add(&page->reads, 1) + 1;
    ssize_t part = fate_of_read(n, size);
    return part <= 0 ? part : flip(n, real(fd, to, (size_t)part, at), to);
}

ssize_t write(int fd, const void *from, size_t size) {
    REAL(write);
    return touched(fd) && fails_write() ? -1 : real(fd, from, size);
}

ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
    REAL(pwrite);
    return touched(fd) && fails_write() ? -1 : real(fd, from, size, at);
}

ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
    REAL(pwrite64);
    return touched(fd) && fails_write() ? -1 : real(fd, from, size, at);
}

int fsync(int fd) {
    REAL(fsync);
    return touched(fd) && fails_sync() ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return touched(fd) && fails_sync() ? -1 : real(fd);
}

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < FILES) atomic_store(&known[fd], 0);
    return real(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int code = real(clock, now);
    if (code == 0 && clock == CLOCK_REALTIME) now->tv_sec += page->clock_seconds;
    return code;
}
