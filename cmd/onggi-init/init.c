// onggi-init: an interpreter of programs of system calls.
//
// It is the first program in every container. It knows nothing about
// containers: package ociruntime compiles what is to be done, package initproc
// lays the program out, and this file executes it, reporting the number of the
// step that did not work. It has no C library, allocates nothing, and is single
// threaded, which is what lets it join user namespaces.
//
// Descriptors when it starts: 0, 1, 2; 3 the launcher's socket; 4 the program to
// interpret; 5 and up what the program is about. All but the first three close
// at exec, unless the program says otherwise.
//
// With words ("onggi-init -- APP ARG..."), which the launcher never gives, it is
// the process 1 of --init in a container of another runtime, and nothing else.
//
// The layout of a program is described in internal/ociruntime/initproc/program.go.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long i64;

#if defined(__x86_64__)
enum {
	NR_close = 3, NR_fstat = 5, NR_mmap = 9, NR_rt_sigaction = 13, NR_rt_sigprocmask = 14,
	NR_sendmsg = 46, NR_recvfrom = 45, NR_wait4 = 61, NR_kill = 62,
	NR_rt_sigtimedwait = 128, NR_prctl = 157, NR_capget = 125, NR_capset = 126, NR_exit_group = 231, NR_close_range = 436,
	NR_write = 1, NR_execve = 59, NR_clone = 56, NR_openat = 257, NR_mkdirat = 258, NR_readlinkat = 267, NR_openat2 = 437, NR_setpgid = 109, NR_getpgid = 121, NR_ioctl = 16,
};
enum { O_DIRECTORY = 0x10000, O_NOFOLLOW = 0x20000 };
static i64 sys6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
	i64 r;
	register i64 r10 __asm__("r10") = d;
	register i64 r8 __asm__("r8") = e;
	register i64 r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
		: "=a"(r)
		: "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall start\n");
#elif defined(__aarch64__)
enum {
	NR_close = 57, NR_fstat = 80, NR_mmap = 222, NR_rt_sigaction = 134, NR_rt_sigprocmask = 135,
	NR_sendmsg = 211, NR_recvfrom = 207, NR_wait4 = 260, NR_kill = 129,
	NR_rt_sigtimedwait = 137, NR_prctl = 167, NR_capget = 90, NR_capset = 91, NR_exit_group = 94, NR_close_range = 436,
	NR_write = 64, NR_execve = 221, NR_clone = 220, NR_openat = 56, NR_mkdirat = 34, NR_readlinkat = 78, NR_openat2 = 437, NR_setpgid = 154, NR_getpgid = 155, NR_ioctl = 29,
};
enum { O_DIRECTORY = 0x4000, O_NOFOLLOW = 0x8000 };
static i64 sys6(i64 n, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f)
{
	register i64 x8 __asm__("x8") = n;
	register i64 x0 __asm__("x0") = a;
	register i64 x1 __asm__("x1") = b;
	register i64 x2 __asm__("x2") = c;
	register i64 x3 __asm__("x3") = d;
	register i64 x4 __asm__("x4") = e;
	register i64 x5 __asm__("x5") = f;
	__asm__ volatile("svc 0"
		: "+r"(x0)
		: "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
		: "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x0,sp\n\tbl start\n");
#else
#error "no system calls for this architecture"
#endif

#define sys(n, a, b, c, d) sys6(n, (i64)(a), (i64)(b), (i64)(c), (i64)(d), 0, 0)
#define failed(r) ((u64)(r) >= (u64)-4095)

enum { ENOENT = 2, EINTR = 4, EAGAIN = 11, EEXIST = 17, ENOTDIR = 20, ENAMETOOLONG = 36, ELOOP = 40 };
enum { O_WRONLY = 1, O_CREAT = 0100, O_EXCL = 0200, O_CLOEXEC = 02000000, O_PATH = 010000000 };
enum { SOCKET = 3, PROGRAM = 4 };

enum { SYSCALL, JUMP, STORE, JUMPIF, LOAD, EXIT, TELL, FAIL, INIT, SET, MKPATH, MOVE };
enum { M_READY = 1, M_ERROR, M_PID, M_FD, M_STAGE };

#define MAGIC 0x31494e494f474e4fUL

struct head { u64 magic, nops, ops, nrelocs, relocs, size, cgroup; };
struct op {
	u8 code, dst;
	u16 types;
	u32 step;
	u64 nr, a[6];
	u8 errs[8];
	u64 target;
};

// The socket to the launcher. It may have to make room for what the application
// gets under its number.
static int sock = SOCKET;

__attribute__((noreturn)) static void leave(int code)
{
	for (;;)
		sys(NR_exit_group, code, 0, 0, 0);
}

// tell sends one message to the launcher.
static i64 tell(u32 kind, u32 step, i64 value)
{
	struct { u32 kind, step; i64 value; } m = { kind, step, value };
	struct { void *base; u64 len; } iov = { &m, sizeof m };
	struct { void *name; u32 namelen, pad; void *iov; u64 iovlen; void *ctl; u64 ctllen; int flags; } h = {
		0, 0, 0, &iov, 1, 0, 0, 0,
	};
	i64 r;
	do
		r = sys(NR_sendmsg, sock, &h, 0x4000 /* MSG_NOSIGNAL */, 0);
	while (r == -EINTR);
	return r;
}

__attribute__((noreturn)) static void fail(const struct op *o, i64 err)
{
	tell(M_ERROR, o->step, err);
	leave(127);
}

static i64 inroot(i64 root, const char *path, u64 flags)
{
	struct { u64 flags, mode, resolve; } how = { flags | O_CLOEXEC, 0, 0x10 | 0x02 /* IN_ROOT, NO_MAGICLINKS */ };
	i64 r;
	int n = 0;
	do // a rename elsewhere makes the kernel unsure about ".."
		r = sys(NR_openat2, root, *path ? path : ".", &how, sizeof how);
	while ((r == -EAGAIN && n++ < 1000) || r == -EINTR);
	return r;
}

// mknew makes an empty file or a directory.
static i64 mknew(i64 dir, const char *name, int file, i64 mode)
{
	i64 fd;
	if (!file)
		return sys(NR_mkdirat, dir, name, mode, 0);
	fd = sys(NR_openat, dir, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, mode);
	return failed(fd) ? fd : sys(NR_close, fd, 0, 0, 0);
}

// mkleaf makes what path ends with in a directory that is there, as a handle.
static i64 mkleaf(i64 root, const char *path, int file, i64 mode)
{
	char parent[4096];
	int n = 0, base = 0;
	i64 dir, r;
	for (; path[n]; n++) {
		if (n == 4095)
			return -ENAMETOOLONG;
		parent[n] = path[n];
		if (path[n] == '/')
			base = n + 1;
	}
	path += base;
	n -= base;
	if (!n || (path[0] == '.' && (n == 1 || (n == 2 && path[1] == '.'))))
		return -ENOENT;
	parent[base] = 0;
	dir = inroot(root, parent, O_PATH | O_DIRECTORY);
	if (failed(dir))
		return dir;
	r = mknew(dir, path, file, mode);
	if (!failed(r))
		r = inroot(dir, path, O_PATH | O_NOFOLLOW);
	sys(NR_close, dir, 0, 0, 0);
	return r;
}

// mkpath opens path below root as a handle, and makes what is missing: the
// directories, and at the end a directory or an empty file. Symbolic links that
// lead nowhere are followed inside the root, as everything else.
static i64 mkpath(i64 root, const char *path, int file, i64 mode)
{
	char done[4096], rest[4096], next[4096]; // done has no links in it and no slash at its end
	int links = 0, n = 0, len = 0;
	i64 r = inroot(root, path, O_PATH);
	if (r != -ENOENT)
		return r;
	r = mkleaf(root, path, file, mode); // the usual case
	if (!failed(r))
		return r;
	while (path[len] && len < 4095) {
		rest[len] = path[len];
		len++;
	}
	if (path[len])
		return -ENAMETOOLONG;
	rest[len] = 0;
	done[0] = 0;
	char *p = rest;
	for (;;) {
		while (*p == '/')
			p++;
		char *name = p;
		while (*p && *p != '/')
			p++;
		int size = p - name;
		if (!size)
			return inroot(root, done, O_PATH);
		if (size == 1 && name[0] == '.')
			continue;
		if (size == 2 && name[0] == '.' && name[1] == '.') {
			while (n > 0 && done[--n] != '/')
				;
			done[n] = 0;
			continue;
		}
		char *q = p;
		while (*q == '/')
			q++;
		int last = !*q;
		if (n + size + 2 > 4096)
			return -ENAMETOOLONG;
		int was = n;
		if (n)
			done[n++] = '/';
		for (int i = 0; i < size; i++)
			done[n++] = name[i];
		done[n] = 0;
		i64 fd = inroot(root, done, O_PATH | O_NOFOLLOW);
		if (fd == -ENOENT) {
			char *base = done + (was ? was + 1 : 0);
			char keep = done[was];
			done[was] = 0;
			i64 dir = inroot(root, done, O_PATH | O_DIRECTORY);
			done[was] = keep;
			if (failed(dir))
				return dir;
			if (!was)
				base = done;
			r = mknew(dir, base, last && file, file && !last ? 0755 : mode);
			sys(NR_close, dir, 0, 0, 0);
			if (failed(r) && r != -EEXIST)
				return r;
			fd = inroot(root, done, O_PATH | O_NOFOLLOW);
		}
		if (failed(fd))
			return fd;
		r = sys(NR_readlinkat, fd, "", next, 4095);
		sys(NR_close, fd, 0, 0, 0);
		if (failed(r))
			continue; // no link
		if (links++ >= 40)
			return -ELOOP;
		// what is left of the path goes behind the link's target
		int t = r;
		next[t++] = '/';
		while (*p) {
			if (t >= 4095)
				return -ENAMETOOLONG;
			next[t++] = *p++;
		}
		for (int i = 0; i < t; i++)
			rest[i] = next[i];
		rest[t] = 0;
		p = rest;
		n = rest[0] == '/' ? 0 : was;
		done[n] = 0;
	}
}

// wait_go waits for one byte. A launcher that is gone has given up.
static void wait_go(void)
{
	u8 go;
	i64 r;
	do
		r = sys6(NR_recvfrom, sock, (i64)&go, 1, 0, 0, 0);
	while (r == -EINTR);
	if (r != 1)
		leave(125);
}

// settle makes process 1 what the app is: without the CAP_SYS_ADMIN of the
// set-up, unless the app has it too, and with nothing of the host in hand. Then
// the app may look at it; /proc/1/fd is where many write their logs to.
static void settle(void)
{
	u32 head[2] = { 0x20080522, 0 }, sets[6];
	sys(NR_close_range, 3, ~0U, 0, 0);
	if (!sys(NR_prctl, 23 /* PR_CAPBSET_READ */, 21, 0, 0) && !failed(sys(NR_capget, head, sets, 0, 0))) {
		sets[0] &= ~(1U << 21);
		sets[1] &= ~(1U << 21);
		if (failed(sys(NR_capset, head, sets, 0, 0)))
			return;
	}
	sys(NR_prctl, 4 /* PR_SET_DUMPABLE */, 1, 0, 0);
}

// reap is the life of process 1 in front of an application: it hands signals
// on, collects orphans, and ends as the application ends.
__attribute__((noreturn)) static void reap(i64 app)
{
	u64 all = ~0UL;
	u8 info[128];
	settle();
	for (;;) {
		int status;
		i64 pid;
		i64 sig = sys(NR_rt_sigtimedwait, &all, info, 0, 8);
		if (sig == 17) { // SIGCHLD
			while ((pid = sys(NR_wait4, -1, &status, 1, 0)) > 0)
				if (pid == app)
					leave((status & 127) ? 128 + (status & 127) : (status >> 8) & 255);
		} else if (sig > 0 && sig != 21 && sig != 22) { // not SIGTTIN, SIGTTOU
			sys(NR_kill, app, sig, 0, 0);
		}
	}
}

// init forks. The child goes on as the application; this process stays in front.
static void init(const struct op *o)
{
	u64 all = ~0UL, none = 0;
	sys(NR_rt_sigprocmask, 2, &all, 0, 8);
	i64 pid = sys6(NR_clone, 17 /* SIGCHLD */, 0, 0, 0, 0, 0);
	if (failed(pid))
		fail(o, -pid);
	if (pid)
		reap(pid);
	// A group of its own, which has the terminal, if there is one. With SIGTTOU
	// blocked the background may take it.
	int group;
	sys(NR_setpgid, 0, 0, 0, 0);
	group = sys(NR_getpgid, 0, 0, 0, 0);
	sys(NR_ioctl, 0, 0x5410 /* TIOCSPGRP */, &group, 0);
	sys(NR_rt_sigprocmask, 2, &none, 0, 8);
}

// say writes to standard error.
static void say(const char *text)
{
	u64 n = 0;
	while (text[n])
		n++;
	sys(NR_write, 2, text, n, 0);
}

// wrap is process 1 in a container of another runtime, whose configuration puts
// "onggi-init --" in front of the application's words.
__attribute__((noreturn)) static void wrap(char **words, char **env)
{
	static const struct op none;
	static const char name[] = "PATH=";
	char file[4096];
	const char *path = "", *c;
	i64 err = -ENOENT;
	init(&none);
	for (char **e = env; *e; e++)
		for (int i = 0; (*e)[i] == name[i]; i++)
			if (!name[i + 1]) {
				path = *e + i + 1;
				break;
			}
	for (c = words[0]; *c && *c != '/'; c++)
		;
	if (*c)
		err = sys(NR_execve, words[0], words, env, 0);
	else
		while (*path) {
			u64 n = 0;
			for (; *path && *path != ':'; path++)
				if (n < sizeof file - 2)
					file[n++] = *path;
			path += *path == ':';
			file[n++] = '/';
			for (c = words[0]; *c && n < sizeof file - 1; c++)
				file[n++] = *c;
			file[n] = 0;
			i64 r = sys(NR_execve, file, words, env, 0);
			if (r != -ENOENT && r != -ENOTDIR)
				err = r;
		}
	say("onggi-init: exec: ");
	say(words[0]);
	say(err == -ENOENT ? ": executable file not found in $PATH\n" : ": it cannot be executed\n");
	leave(err == -ENOENT ? 127 : 126);
}

static int listed(const u8 *errs, i64 err)
{
	for (int i = 0; i < 8 && errs[i]; i++)
		if (errs[i] == err)
			return 1;
	return 0;
}

__attribute__((noreturn)) static void run(u8 *base, u64 size)
{
	const struct head *h = (void *)base;
	const struct op *ops = (void *)(base + h->ops);
	const u64 *relocs = (void *)(base + h->relocs);
	i64 reg[256];
	if (h->magic != MAGIC || h->size != size)
		leave(125);
	for (u64 i = 0; i < h->nrelocs; i++)
		*(u64 *)(base + relocs[i]) += (u64)base;
	for (int i = 0; i < 256; i++)
		reg[i] = 0;
	for (u64 pc = 0;;) {
		if (pc >= h->nops)
			leave(125);
		const struct op *o = ops + pc++;
		i64 a[6], r;
		for (int k = 0; k < 6; k++) {
			int type = o->types >> 2 * k & 3;
			a[k] = o->a[k];
			if (type == 1)
				a[k] += (i64)base;
			else if (type == 2)
				a[k] = reg[a[k] & 255];
		}
		switch (o->code) {
		case SYSCALL:
		case MKPATH:
			if (o->code == MKPATH)
				r = mkpath(a[0], (const char *)a[1], a[2], a[3]);
			else
				r = sys6(o->nr, a[0], a[1], a[2], a[3], a[4], a[5]);
			if (o->dst)
				reg[o->dst] = r;
			if (failed(r)) {
				if (!listed(o->errs, -r))
					fail(o, -r);
				if (o->target < h->nops)
					pc = o->target;
			}
			break;
		case JUMP:
			pc = o->target;
			break;
		case STORE:
			if (a[2] == 4)
				*(u32 *)a[0] = a[1];
			else
				*(i64 *)a[0] = a[1];
			break;
		case JUMPIF:
			if ((a[0] & a[2]) == a[1])
				pc = o->target;
			break;
		case LOAD:
			reg[o->dst] = a[1] == 1 ? *(u8 *)a[0] : a[1] == 4 ? *(u32 *)a[0] : *(i64 *)a[0];
			break;
		case EXIT:
			leave(a[0]);
		case TELL:
			tell(a[0], o->step, a[1]);
			if (a[2])
				wait_go();
			break;
		case FAIL:
			fail(o, a[0]);
		case INIT:
			init(o);
			break;
		case MOVE:
			sock = a[0];
			break;
		case SET:
			reg[o->dst] = a[0];
			break;
		default:
			fail(o, 38 /* ENOSYS */);
		}
	}
}

__attribute__((noreturn, used)) void start(u64 *stack)
{
	u64 none = 0, act[4] = { 0 }, st[32];
	u64 argc = stack[0];
	char **argv = (char **)(stack + 1);
	// Nothing in the container may look into this process: it has seen the host.
	sys(NR_prctl, 4 /* PR_SET_DUMPABLE */, 0, 0, 0);
	sys(NR_close_range, 3, ~0U, 4 /* CLOEXEC */, 0);
	for (int s = 1; s <= 64; s++)
		sys(NR_rt_sigaction, s, act, 0, 8);
	sys(NR_rt_sigprocmask, 2, &none, 0, 8);
	if (argc > 2) // onggi-init -- APP ...
		wrap(argv + 2, argv + argc + 1);
	if (failed(sys(NR_fstat, PROGRAM, st, 0, 0)))
		leave(125);
	u64 size = st[6]; // st_size, on both architectures
	u8 *base = (u8 *)sys6(NR_mmap, 0, size, 3, 2 /* MAP_PRIVATE */, PROGRAM, 0);
	if (failed(base) || size < sizeof(struct head))
		leave(125);
	sys(NR_close, PROGRAM, 0, 0, 0);
	run(base, size);
}
