//! A directory of this user's, held open. What is in it is named relative to it, so that nothing is reached through a link
//! or belongs to somebody else.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, fchmod, fstat, mkdirat, openat, renameat, unlinkat,
};

/// Where a directory is, and whose it has to be.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) path: PathBuf,
    pub(crate) owner: u32,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    owner: u32,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Past the page cache, where the filesystem takes that.
    ReadDirect,
    /// To write at its end; it is made if it is not there.
    Append,
    /// A new file.
    Create,
    /// A new file, written past the page cache where the filesystem takes that.
    CreateDirect,
}

fn refused(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, reason.to_owned())
}

/// The user that this process acts for.
pub(crate) fn this_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl Home {
    /// Opens the directory, which must be `owner`'s and nobody else's to write in.
    pub(crate) fn open(&self) -> io::Result<Folder> {
        Folder::open_at(CWD, self.path.as_os_str(), self.owner)
    }

    /// Makes the directory, and those above it, for this user alone.
    pub(crate) fn make(&self) -> io::Result<Folder> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        self.open()
    }
}

impl Folder {
    fn open_at(at: impl std::os::fd::AsFd, name: &OsStr, owner: u32) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(at, name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        if stat.st_uid != owner {
            return Err(refused("it belongs to another user"));
        }
        if stat.st_mode & 0o077 != 0
            && let Err(error) = fchmod(&fd, Mode::RWXU)
            && stat.st_mode & 0o022 != 0
        {
            return Err(io::Error::new(error.kind(), "others may write in it, and that cannot be changed"));
        }
        Ok(Folder { fd, owner })
    }

    /// A directory inside.
    pub(crate) fn inner(&self, name: &str) -> io::Result<Folder> {
        Self::open_at(&self.fd, OsStr::new(name), self.owner)
    }

    /// A directory inside, made if it is not there.
    pub(crate) fn make_inner(&self, name: &str) -> io::Result<Folder> {
        match mkdirat(&self.fd, name, Mode::RWXU) {
            Err(error) if error != rustix::io::Errno::EXIST => Err(error.into()),
            _ => self.inner(name),
        }
    }

    /// The names in it that are text; mach's own are.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.fd)? {
            let entry = entry?;
            if let Some(name) = OsStr::from_bytes(entry.file_name().to_bytes()).to_str() {
                names.push(name.to_owned());
            }
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// Opens a plain file of the owner's. Links and everything else are refused.
    pub(crate) fn file(&self, name: &str, access: Access) -> io::Result<File> {
        // A pipe that has taken the name must not hold anybody up.
        let always = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let flags = always
            | match access {
                Access::Read | Access::ReadDirect => OFlags::RDONLY,
                Access::Append => OFlags::RDWR | OFlags::APPEND | OFlags::CREATE,
                Access::Create | Access::CreateDirect => OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
            };
        let mode = Mode::RUSR | Mode::WUSR;
        #[cfg(target_os = "linux")]
        let direct = match access {
            Access::ReadDirect | Access::CreateDirect => OFlags::DIRECT,
            Access::Read | Access::Append | Access::Create => OFlags::empty(),
        };
        #[cfg(not(target_os = "linux"))]
        let direct = OFlags::empty();
        let fd = match openat(&self.fd, name, flags | direct, mode) {
            // Filesystems without direct access refuse the flag; some have made the file by then.
            Err(rustix::io::Errno::INVAL) if !direct.is_empty() => {
                let again = if access == Access::CreateDirect { flags - OFlags::EXCL } else { flags };
                openat(&self.fd, name, again, mode)
            }
            result => result,
        }?;
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused("it is no plain file"));
        }
        if stat.st_uid != self.owner {
            return Err(refused("it belongs to another user"));
        }
        Ok(fd.into())
    }

    /// Gives a file another name, here or in another directory. What has that name gives way.
    pub(crate) fn rename(&self, name: &str, to: &Folder, new: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, name, &to.fd, new)?)
    }

    /// Removes a file. One that is gone, by whomever, is no error.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Err(error) if error != rustix::io::Errno::NOENT => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Makes names that were given or taken away last.
    pub(crate) fn sync(&self) -> io::Result<()> {
        File::from(self.fd.try_clone()?).sync_all()
    }

    /// Bytes of the filesystem that are free for this user.
    pub(crate) fn free(&self) -> io::Result<u64> {
        let fs = rustix::fs::fstatvfs(&self.fd)?;
        Ok(fs.f_bavail.saturating_mul(fs.f_frsize))
    }
}

/// Whether a path names something that is there, links not followed.
#[cfg(test)]
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Names of the directories in one; links to some are none.
pub(crate) fn directories(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let real = entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
    real.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder(path: &Path) -> Folder {
        Home { path: path.to_owned(), owner: this_user() }.open().unwrap()
    }

    #[test]
    fn another_users_directory_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let of = |owner| Home { path: dir.path().to_owned(), owner };
        let error = of(this_user() + 1).open().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        let mode = || fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o777, "it is not ours to change");
        of(this_user()).open().unwrap();
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn links_pipes_and_directories_are_no_files() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("target");
        fs::write(&target, "theirs").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        symlink(elsewhere.path().join("not there"), dir.path().join("dangling")).unwrap();
        symlink(elsewhere.path(), dir.path().join("directory link")).unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status();
        assert!(made.unwrap().success());
        let folder = folder(dir.path());
        for name in ["link", "dangling", "directory link", "directory", "pipe"] {
            for access in
                [Access::Read, Access::ReadDirect, Access::Append, Access::Create, Access::CreateDirect]
            {
                assert!(folder.file(name, access).is_err(), "{name} {access:?}");
            }
        }
        assert!(folder.inner("directory link").is_err() && folder.make_inner("directory link").is_err());
        assert!(folder.inner("directory").is_ok() && folder.make_inner("new").is_ok());
        assert!(!is_there(&elsewhere.path().join("not there")));
        folder.remove("link").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"theirs");
        folder.remove("link").expect("gone is gone");
    }

    #[test]
    fn another_users_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let folder = Folder { owner: this_user() + 1, ..folder(dir.path()) };
        assert!(folder.file("file", Access::Read).is_err());
    }
}
