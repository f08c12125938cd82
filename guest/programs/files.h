/* A scratch directory that is gone at the end: tmpfs where there is one, so that file systems differ as little as can be. */
#ifndef FILES_H
#define FILES_H

#include "say.h"
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>

static char scratch[64];

static int scratch_remove(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
	(void)st, (void)kind, (void)ftw;
	return remove(path);
}

__attribute__((unused)) static void scratch_leave(void)
{
	if (chdir("/"))
		abort();
	nftw(scratch, scratch_remove, 16, FTW_DEPTH | FTW_PHYS);
}

/* Make the directory, with any bits of `mode`, and go there. */
__attribute__((unused)) static void scratch_enter(mode_t mode)
{
	strcpy(scratch, "/dev/shm/vfsXXXXXX");
	if (!mkdtemp(scratch)) {
		strcpy(scratch, "/tmp/vfsXXXXXX");
		if (!mkdtemp(scratch))
			abort();
	}
	if (chmod(scratch, mode) || chdir(scratch))
		abort();
	umask(022);
}

/* What stat says of a file, without what file systems differ in. */
__attribute__((unused)) static void show(const char *path)
{
	struct stat st;

	if (lstat(path, &st)) {
		printf("  %s: %s\n", path, strerrorname_np(errno));
		return;
	}
	printf("  %s: %o uid %u gid %u", path, st.st_mode, st.st_uid, st.st_gid);
	if (!S_ISDIR(st.st_mode))
		printf(" links %lu size %ld", (unsigned long)st.st_nlink, (long)st.st_size);
	putchar('\n');
}

/* Open, close, and say only whether it could be opened. */
__attribute__((unused)) static long can(long fd)
{
	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

__attribute__((unused)) static void make(const char *path, mode_t mode, const char *text)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		abort();
	close(fd);
}

#endif
