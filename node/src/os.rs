//! Everything this package asks of Linux that the standard library does not offer.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};
use std::{
    io::{self, BufRead, IsTerminal, Write},
    os::{
        fd::AsFd,
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            fs::PermissionsExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// A socket's path must fit into `sockaddr_un`, with its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Columns assumed where the terminal does not say.
const COLUMNS_DEFAULT: usize = 80;

/// The user this process runs as.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether a process of user `peer` may order this one about: the same user, or root, who may do everything anyway.
pub fn is_own_user(peer: u32) -> bool {
    peer == own_uid() || peer == 0
}

/// Makes every file and socket this process creates private to its user.
pub fn make_files_private() {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
}

/// Where data lies when nobody says otherwise: `$XDG_DATA_HOME/kai`, else `~/.local/share/kai`.
pub fn default_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/share")))
        .map(|data| data.join("kai"))
}

/// Columns of the terminal that standard output or standard error is.
pub fn columns() -> usize {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stderr()));
    size.map(|size| usize::from(size.ws_col)).ok().filter(|columns| *columns > 0).unwrap_or(COLUMNS_DEFAULT)
}

/// A line typed without being shown, from the terminal; from a pipe as it comes.
///
/// # Errors
/// The system's, or [`io::ErrorKind::UnexpectedEof`].
pub fn read_hidden(prompt: &str) -> io::Result<Zeroizing<String>> {
    let input = io::stdin();
    if !input.is_terminal() {
        return read_line();
    }
    let shown = tcgetattr(&input)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    write!(io::stderr(), "{prompt}")?;
    io::stderr().flush()?;
    tcsetattr(&input, OptionalActions::Flush, &hidden)?;
    let line = read_line();
    let restored = tcsetattr(&input, OptionalActions::Flush, &shown);
    writeln!(io::stderr())?;
    restored?;
    line
}

/// A line of standard input, without its end.
///
/// # Errors
/// The system's, or [`io::ErrorKind::UnexpectedEof`].
pub fn read_line() -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

/// A path for a Unix socket in `folder` that the kernel takes, however deep the folder lies.
///
/// The handle must live until the path has been used.
///
/// # Errors
/// The folder cannot be opened.
pub fn socket_path(folder: &Path, name: &str) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    let path = folder.join(name);
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((path, None));
    }
    let handle = std::fs::File::open(folder)?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&handle);
    Ok((PathBuf::from(format!("/proc/self/fd/{number}")).join(name), Some(handle)))
}

/// Binds the socket `name` in `folder`, mode 0600, in place of one that a killed process left.
///
/// Only the holder of the folder's lock may do this.
///
/// # Errors
/// The system's.
pub fn bind_socket(folder: &Path, name: &str) -> io::Result<tokio::net::UnixListener> {
    let (path, _handle) = socket_path(folder, name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Tells the service manager something, where one listens: `READY=1`, `STOPPING=1`.
///
/// # Errors
/// The system's. Without a service manager nothing is done.
pub fn notify_manager(state: &str) -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(address) => notify_socket(address.as_bytes(), state),
        None => Ok(()),
    }
}

fn notify_socket(address: &[u8], state: &str) -> io::Result<()> {
    let address = match address.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(Path::new(std::ffi::OsStr::from_bytes(address)))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

/// Waits until a process has ended; whether it has.
///
/// # Errors
/// The system's. A process that is gone already counts as ended.
pub async fn wait_for_end(pid: i32, patience: Duration) -> io::Result<bool> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(true) };
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        other => other?,
    };
    let wait = move || {
        let patience = rustix::event::Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut ends = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
        Ok(rustix::event::poll(&mut ends, Some(&patience))? > 0)
    };
    tokio::task::spawn_blocking(wait).await.map_err(io::Error::other)?
}

/// Memory this process has in use, in bytes.
pub fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Descriptors this process has open.
pub fn open_files() -> Option<u64> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64)
}

/// Makes the entries of a folder durable: after a file in it was replaced.
///
/// # Errors
/// The system's.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(std::fs::File::open(folder)?.as_fd())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn data_lies_where_the_desktop_says() {
        let folder = |set: &[(&str, &str)]| {
            default_folder(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(folder(&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")]), Some("/x/kai".into()));
        assert_eq!(
            folder(&[("XDG_DATA_HOME", "relative"), ("HOME", "/h")]),
            Some("/h/.local/share/kai".into())
        );
        assert_eq!(folder(&[]), None);
    }

    #[test]
    fn only_the_own_user_and_root_give_orders() {
        assert!(is_own_user(own_uid()) && is_own_user(0));
        assert!(!is_own_user(own_uid() + 1));
    }

    #[tokio::test]
    async fn a_socket_is_private_replaces_a_stale_one_and_may_lie_deep() {
        let place = tempfile::tempdir().unwrap();
        let deep = place.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        for folder in [place.path(), deep.as_path()] {
            drop(bind_socket(folder, "kai.sock").unwrap());
            let listener = bind_socket(folder, "kai.sock").unwrap();
            assert_eq!(std::fs::metadata(folder.join("kai.sock")).unwrap().mode() & 0o777, 0o600);
            let (path, _handle) = socket_path(folder, "kai.sock").unwrap();
            let (client, server) = tokio::join!(tokio::net::UnixStream::connect(path), listener.accept());
            assert_eq!(server.unwrap().0.peer_cred().unwrap().uid(), own_uid());
            client.unwrap();
        }
    }

    #[test]
    fn the_service_manager_hears_by_path_and_by_abstract_name() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("notify");
        let abstract_name = format!("kos-node-test-{}", std::process::id());
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().as_bytes().to_vec()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap(),
                format!("@{abstract_name}").into_bytes(),
            ),
        ];
        for (socket, address) in sockets {
            notify_socket(&address, "READY=1").unwrap();
            let mut buffer = [0; 16];
            let size = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..size], b"READY=1");
        }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_waited_for() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = child.id() as i32;
        assert!(!wait_for_end(pid, Duration::ZERO).await.unwrap());
        drop(child.stdin.take());
        assert!(wait_for_end(pid, Duration::from_secs(10)).await.unwrap());
        child.wait().unwrap();
        assert!(wait_for_end(pid, Duration::from_secs(10)).await.unwrap());
    }
}
