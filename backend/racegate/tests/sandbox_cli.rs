//! Goal: a daemon in its sandbox cannot do what serving does not need, whoever it runs as.
//! Method: the real daemons say with /proc what they have given up. And this program starts itself,
//! enters the same sandbox and tries one forbidden thing after the other: each must fail or end it,
//! with a line that names the call. Canary: without the sandbox each of them works.

mod support {
    #![allow(dead_code)]
    pub(crate) mod daemon;
}

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use device::sandbox::{self, Mode, Role};
use support::daemon::of_threads;

/// Set for the program that is to do something forbidden.
const ACT: &str = "RACEGATE_TEST_ACT";
/// Where it may look for something to do it to.
const AT: &str = "RACEGATE_TEST_AT";
/// `on` or `off`.
const SANDBOX: &str = "RACEGATE_TEST_SANDBOX";

/// One test at a time: a program that is being copied must not be inherited, open for writing, by
/// a child of another test.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const NOBODY: u32 = 65534;
const SIGSYS: i32 = 31;

/// What must become of an act.
#[derive(Clone, Copy, Debug)]
enum End {
    /// It fails, and the program goes on.
    Refused,
    /// The program ends, and says that it was this call.
    Killed(&'static str),
    /// The program ends without a line: the C library had blocked the signal.
    Ended,
}

const ACTS: [(&str, End); 10] = [
    ("open", End::Refused),
    ("create", End::Refused),
    ("remove", End::Refused),
    ("abstract", End::Refused),
    ("exec", End::Killed("execve")),
    ("spawn", End::Ended),
    ("tcp", End::Killed("socket")),
    ("session", End::Killed("setsid")),
    ("queue-socket", End::Killed("socket")),
    ("timer-read", End::Killed("pread64")),
];

/// Does one thing; true: it worked.
fn act(what: &str, at: &Path) -> bool {
    match what {
        "open" => fs::read(at.join("secret")).is_ok(),
        "create" => fs::write(at.join("new"), "").is_ok(),
        "remove" => fs::remove_file(at.join("precious")).is_ok(),
        "abstract" => {
            let name = fs_name(at);
            let address = SocketAddr::from_abstract_name(name).expect("a name");
            UnixStream::connect_addr(&address).is_ok()
        }
        "exec" => {
            // Does not come back if it works.
            let _ = Command::new("/bin/true").exec();
            false
        }
        "spawn" => Command::new("/bin/true").status().is_ok(),
        "tcp" => {
            let listener = TcpListener::bind("127.0.0.1:0");
            listener.and_then(|listener| TcpStream::connect(listener.local_addr()?)).is_ok()
        }
        "session" => rustix::process::setsid().is_ok(),
        "queue-socket" => {
            sandbox::narrow(Role::Queue);
            UnixStream::connect(at.join("socket")).is_ok()
        }
        other => panic!("no such act: {other}"),
    }
}

fn fs_name(at: &Path) -> String {
    format!("racegate-test-{}", at.display())
}

/// Not a test of its own: what the other tests start this program for.
#[test]
fn acts_when_told() {
    let Ok(what) = std::env::var(ACT) else { return };
    let at = PathBuf::from(std::env::var_os(AT).expect("a folder"));
    let open = fs::File::open(at.join("secret")).expect("before the sandbox everything is open");
    if std::env::var(SANDBOX).as_deref() == Ok("on") {
        sandbox::enter(Mode::On, &[at.join("sockets")]).expect("a sandbox");
        // What serving needs goes on.
        fs::remove_file(at.join("sockets/mine")).expect("its own sockets");
        std::thread::spawn(|| sandbox::narrow(Role::Queue)).join().expect("threads");
        let _pair = UnixStream::pair().expect("sockets");
    }
    let worked = if what == "timer-read" {
        sandbox::narrow(Role::Timer);
        std::os::unix::fs::FileExt::read_at(&open, &mut [0; 4], 0).is_ok()
    } else {
        act(&what, &at)
    };
    eprintln!("{}", if worked { "it worked" } else { "it was refused" });
    std::process::exit(0);
}

/// A folder with what the acts want, and a program that anybody can run.
struct Scene {
    folder: tempfile::TempDir,
    _listeners: (UnixListener, UnixListener),
}

impl Scene {
    fn new(program: &Path) -> Scene {
        let folder = tempfile::tempdir().expect("folder");
        let at = folder.path();
        fs::copy(program, at.join("program")).expect("a copy");
        fs::create_dir(at.join("sockets")).expect("a folder");
        for name in ["secret", "precious", "sockets/mine"] {
            fs::write(at.join(name), "text").expect("a file");
        }
        for name in ["", "sockets", "secret", "precious", "sockets/mine"] {
            let everyone = fs::Permissions::from_mode(0o777);
            fs::set_permissions(at.join(name), everyone).expect("permissions");
        }
        let by_path = UnixListener::bind(at.join("socket")).expect("listens");
        fs::set_permissions(at.join("socket"), fs::Permissions::from_mode(0o777)).expect("mode");
        let address = SocketAddr::from_abstract_name(fs_name(at)).expect("a name");
        let by_name = UnixListener::bind_addr(&address).expect("listens");
        Scene { folder, _listeners: (by_path, by_name) }
    }

    fn run(&self, act: &str, sandbox: &str, user: Option<u32>) -> Output {
        let mut command = Command::new(self.folder.path().join("program"));
        command
            .args(["--exact", "acts_when_told", "--nocapture"])
            .env(ACT, act)
            .env(AT, self.folder.path())
            .env(SANDBOX, sandbox)
            .current_dir("/");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command.output().expect("it starts")
    }
}

/// This user, and an unprivileged one if we can become it.
fn users() -> Vec<Option<u32>> {
    if rustix::process::geteuid().is_root() { vec![None, Some(NOBODY)] } else { vec![None] }
}

#[test]
fn forbidden_things_fail() {
    let _alone = alone();
    let program = std::env::current_exe().expect("this program");
    for user in users() {
        for (act, end) in ACTS {
            // Each act has a scene of its own: without a sandbox it may destroy it.
            let scene = Scene::new(&program);
            let output = scene.run(act, "on", user);
            let said = String::from_utf8_lossy(&output.stderr);
            match end {
                End::Refused => {
                    assert!(output.status.success(), "{act} as {user:?}: {output:?}");
                    assert!(said.contains("it was refused"), "{act} as {user:?}: {said}");
                }
                End::Ended => {
                    let signal = output.status.signal();
                    assert_eq!(signal, Some(SIGSYS), "{act} as {user:?}: {output:?}");
                }
                End::Killed(call) => {
                    let signal = output.status.signal();
                    assert_eq!(signal, Some(SIGSYS), "{act} as {user:?}: {output:?}");
                    let line = format!("sandbox: the system call {call} (");
                    assert!(said.contains(&line), "{act} as {user:?}: {said}");
                }
            }
        }
    }
}

/// Goal: the acts can work at all. Without the sandbox each of them does.
#[test]
fn without_a_sandbox_they_work() {
    let _alone = alone();
    let program = std::env::current_exe().expect("this program");
    for (act, _) in ACTS {
        let scene = Scene::new(&program);
        let output = scene.run(act, "off", None);
        let said = String::from_utf8_lossy(&output.stderr);
        // The program that replaced itself by another says nothing more; a session leader cannot
        // begin a session.
        let silent = act == "exec" || act == "session";
        assert!(silent || said.contains("it worked"), "{act}: {output:?}");
        assert!(output.status.success(), "{act}: {output:?}");
    }
}

#[test]
fn daemons_are_in_their_sandbox() {
    let _alone = alone();
    let program = Path::new(env!("CARGO_BIN_EXE_racegate-blk"));
    for user in users() {
        for (sandbox, seccomp, privileges) in
            [("on", "2", "1"), ("log", "2", "1"), ("off", "0", "0")]
        {
            let scene = Scene::new(program);
            let at = scene.folder.path();
            fs::write(at.join("disk.img"), vec![0; 1 << 20]).expect("an image");
            let mode = fs::Permissions::from_mode(0o666);
            fs::set_permissions(at.join("disk.img"), mode).expect("permissions");
            let mut command = Command::new(at.join("program"));
            command.current_dir(at).args(["--blk-file", "disk.img", "--sandbox", sandbox]);
            command.args(["--socket-path", "sockets/disk", "--control-socket", "sockets/ctl"]);
            command.args(["--ready-fd", "1"]).stdout(Stdio::piped());
            if let Some(user) = user {
                command.uid(user).gid(user);
            }
            let mut child = command.spawn().expect("it starts");
            let mut ready = String::new();
            let out = child.stdout.as_mut().expect("piped");
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut ready)
                .expect("line");
            assert_eq!(ready, "ready\n", "{sandbox} as {user:?}");
            let pid = child.id();
            let has = |field: &str, wanted: &str| {
                let found = of_threads(pid, field);
                assert!(found.len() > 2, "{found:?}");
                assert!(found.iter().all(|of| of == wanted), "{sandbox}: {field} {found:?}");
            };
            has("Seccomp", seccomp);
            has("NoNewPrivs", privileges);
            // It still does what it is told, and cleans up after itself.
            let mut control = UnixStream::connect(at.join("sockets/ctl")).expect("control");
            control.write_all(b"{\"command\":\"shutdown\"}\n").expect("a command");
            let output = support::daemon::end(child);
            assert!(output.status.success(), "{output:?}");
            assert!(!at.join("sockets/disk").exists() && !at.join("sockets/ctl").exists());
        }
    }
}
