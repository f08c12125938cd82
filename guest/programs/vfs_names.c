// Names: mkdir, rmdir, link, unlink, rename with its flags, mknod, and reading directories.
// boot: host
#include "files.h"
#include <sys/sysmacros.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#define RENAME_WHITEOUT 4
#endif

static int by_name(const struct dirent **one, const struct dirent **other)
{
	return strcmp((*one)->d_name, (*other)->d_name);
}

static void list(const char *path)
{
	struct dirent **entries;
	int count = scandir(path, &entries, NULL, by_name);

	printf("  %s:", path);
	for (int i = 0; i < count; i++) {
		printf(" %s(%d)", entries[i]->d_name, entries[i]->d_type);
		free(entries[i]);
	}
	putchar('\n');
	if (count >= 0)
		free(entries);
}

static long rename2(const char *from, const char *to, unsigned flags)
{
	return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
}

static void making(void)
{
	SAY(mkdir("d", 0755));
	SAY(mkdir("d", 0755));
	SAY(mkdir("d/", 0755));
	SAY(mkdir("d/.", 0755));
	SAY(mkdir("d/..", 0755));
	SAY(mkdir("/", 0755));
	SAY(mkdir("d/sub/", 0755));
	SAY(mkdir("none/sub", 0755));
	SAY(mkdir("", 0755));
	make("f", 0644, "f");
	SAY(mkdir("f/sub", 0755));
	SAY(mknod("reg", S_IFREG | 0640, 0));
	SAY(mknod("zero", 0640, 0));
	SAY(mknod("dir", S_IFDIR | 0640, 0));
	SAY(mknod("link", S_IFLNK | 0640, 0));
	SAY(mknod("sock", S_IFSOCK | 0640, 0));
	SAY(mknod("fifo", S_IFIFO | 0640, 0));
	SAY(mknod("f", S_IFIFO | 0640, 0));
	SAY(mknod("slash/", S_IFREG | 0640, 0));
	SAY(can(open("sock", O_RDONLY)));
	SAY(can(open("fifo", O_RDONLY | O_NONBLOCK)));
	SAY(can(open("fifo", O_WRONLY | O_NONBLOCK)));
	SAY(symlink("x", "f"));
	SAY(symlink("x", "new/"));
	SAY(symlink("d", "dlink"));
	list(".");
}

static void linking(void)
{
	SAY(link("f", "g"));
	show("f");
	SAY(link("f", "g"));
	SAY(link("d", "h"));
	SAY(link("none", "h"));
	SAY(link("f", "h/"));
	SAY(link("f/", "h"));
	SAY(link("dlink", "h"));
	show("h");
	SAY(linkat(AT_FDCWD, "dlink", AT_FDCWD, "i", AT_SYMLINK_FOLLOW));
	SAY(linkat(AT_FDCWD, "f", AT_FDCWD, "i", 1));
	SAY(link("f", "/sys/x"));
	SAY(unlink("g"));
	show("f");
	SAY(unlink("g"));
	SAY(unlink("d"));
	SAY(unlink("f/"));
	SAY(unlink("d/"));
	SAY(unlink("."));
	SAY(unlink("d/.."));
	SAY(unlink("/"));
	SAY(unlink("dlink/"));
	SAY(unlinkat(AT_FDCWD, "d/sub", AT_REMOVEDIR));
	SAY(unlinkat(AT_FDCWD, "f", AT_REMOVEDIR));
	SAY(unlinkat(AT_FDCWD, "f", 1));
	SAY(rmdir("f"));
	SAY(rmdir("dlink"));
	SAY(rmdir("dlink/"));
	SAY(rmdir("."));
	SAY(rmdir("d/.."));
	SAY(rmdir("/"));
	SAY(rmdir("none"));
	SAY(mkdir("d/sub", 0755));
	SAY(rmdir("d"));
	list(".");
}

static void renaming(void)
{
	SAY(rename("f", "f"));
	SAY(rename("f", "d"));
	SAY(rename("d", "f"));
	SAY(rename("f", "none/f"));
	SAY(rename("none", "f"));
	SAY(rename("d", "d/sub/d"));
	SAY(rename("d/sub", "d"));
	SAY(rename("f/", "g"));
	SAY(rename("f", "g/"));
	SAY(rename("d/.", "g"));
	SAY(rename("d", "."));
	SAY(rename("d", "g/"));
	SAY(rename("g", "d"));
	SAY(mkdir("e", 0755));
	SAY(rename("e", "d"));
	make("d/sub/f", 0644, "");
	SAY(rename("e", "d/sub"));
	SAY(rename("f", "d/f"));
	list("d");
	SAY(link("d/f", "f"));
	SAY(rename("f", "d/f"));
	list(".");
	SAY(rename2("d/f", "f", RENAME_NOREPLACE));
	SAY(rename2("d/f", "h", RENAME_NOREPLACE));
	SAY(rename2("d", "h", RENAME_EXCHANGE));
	list(".");
	show("d");
	SAY(rename2("h/sub", "h", RENAME_EXCHANGE));
	SAY(rename2("h", "none", RENAME_EXCHANGE));
	SAY(rename2("h", "d", RENAME_EXCHANGE));
	SAY(rename2("d", "e", RENAME_EXCHANGE | RENAME_NOREPLACE));
	SAY(rename2("d", "e", RENAME_EXCHANGE | RENAME_WHITEOUT));
	SAY(rename2("d", "e", 8));
	SAY(rename2("d/f", "/proc/f", 0));
	SAY(rename("dlink", "dlink2"));
	SAY(rename("dlink2/", "dlink3"));
	SAY(rename("dlink2", "d/f"));
	list("d");
	list(".");
}

static void reading(void)
{
	char buffer[4096];
	int fd, total = 0, calls = 0;
	long n;

	SAY(mkdir("many", 0755));
	for (int i = 0; i < 300; i++) {
		snprintf(buffer, sizeof(buffer), "many/%d", i);
		make(buffer, 0644, "");
	}
	fd = open("many", O_RDONLY | O_DIRECTORY);
	SAY(syscall(SYS_getdents64, fd, buffer, 10));
	while ((n = syscall(SYS_getdents64, fd, buffer, 500)) > 0) {
		for (long at = 0; at < n; at += *(unsigned short *)(buffer + at + 16))
			total++;
		calls++;
	}
	printf("  %d entries, more than one call: %d, end %ld\n", total, calls > 1, n);
	SAY(lseek(fd, 0, SEEK_SET));
	SAY(syscall(SYS_getdents64, fd, bad_page(), 500));
	n = syscall(SYS_getdents, fd, buffer, sizeof(buffer));
	printf("  old ones: %d, first of kind %d\n", n > 0, buffer[*(unsigned short *)(buffer + 16) - 1]);
	SAY(read(fd, buffer, 10));
	SAY(write(fd, buffer, 10));
	close(fd);
	fd = open("many/0", O_RDONLY);
	SAY(syscall(SYS_getdents64, fd, buffer, 500));
	close(fd);
	/* Removing while reading loses nothing. */
	DIR *dir = opendir("many");
	struct dirent *entry;
	total = 0;
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.') {
			snprintf(buffer, sizeof(buffer), "many/%s", entry->d_name);
			total += !unlink(buffer);
		}
	closedir(dir);
	printf("  removed %d\n", total);
	SAY(rmdir("many"));
}

int main(void)
{
	scratch_enter(0755);
	making();
	linking();
	renaming();
	reading();
	scratch_leave();
	return 0;
}
