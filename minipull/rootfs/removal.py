# SPDX-License-Identifier: Apache-2.0
"""Removal of directories by descriptors: no link is followed, no depth is too much."""
import os
import stat

FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)


def clear(path: str) -> None:
    """Empty a directory; raises OSError."""
    fd = os.open(path, FOLDER)
    try:
        trash_name = ".minipull-" + os.urandom(8).hex()
        os.mkdir(trash_name, 0o700, dir_fd=fd)
        trash = os.open(trash_name, FOLDER, dir_fd=fd)
        try:
            for name in set(os.listdir(fd)) - {trash_name}:
                if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
                    os.chmod(name, 0o700, dir_fd=fd)
                    remove_tree(os.fsencode(name), fd, trash)
                else:
                    os.unlink(name, dir_fd=fd)
        finally:
            os.close(trash)
        os.rmdir(trash_name, dir_fd=fd)
    finally:
        os.close(fd)


def remove_tree(name: bytes, fd: int, trash: int) -> None:
    """Remove the directory ``name`` in ``fd`` by way of ``trash``, an empty one.

    Nested directories are moved there, side by side: however deep a layer nests
    them, two are open.
    """
    os.rename(name, b"0", src_dir_fd=fd, dst_dir_fd=trash)
    count, done = 1, 0
    while done < count:
        folder = os.open(b"%d" % done, FOLDER, dir_fd=trash)
        try:
            for child in os.listdir(folder):
                if stat.S_ISDIR(os.lstat(child, dir_fd=folder).st_mode):
                    os.chmod(child, 0o700, dir_fd=folder)
                    os.rename(child, b"%d" % count, src_dir_fd=folder, dst_dir_fd=trash)
                    count += 1
                else:
                    os.unlink(child, dir_fd=folder)
        finally:
            os.close(folder)
        os.rmdir(b"%d" % done, dir_fd=trash)
        done += 1
