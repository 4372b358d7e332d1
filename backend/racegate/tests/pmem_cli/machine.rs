//! What this machine permits.
//!
//! In: attempts. Out: reasons to skip.

use std::process::{Command, Stdio};

/// The reasons; `None` where there is none.
pub(crate) struct Machine {
    fuse: Option<String>,
    namespace: Option<String>,
    root: Option<String>,
}

impl Machine {
    pub(crate) fn look() -> Machine {
        let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
        let fuse = fuse.err().map(|error| format!("/dev/fuse: {error}"));
        let quiet = |words: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        let namespace = (!quiet(&["unshare", "--user", "--mount", "true"]))
            .then(|| "user namespaces are not permitted".to_owned());
        let root = (!rustix::process::geteuid().is_root()
            || !quiet(&["unshare", "--mount", "true"]))
        .then(|| "not root, or not permitted to mount".to_owned());
        let namespace = fuse.clone().or(namespace);
        let root = fuse.clone().or(root);
        // Without root the tests of pages use a namespace.
        let fuse = if root.is_some() { namespace.clone() } else { fuse };
        Machine { fuse, namespace, root }
    }

    pub(crate) fn no_fuse(&self) -> Option<&str> {
        self.fuse.as_deref()
    }

    pub(crate) fn no_namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(crate) fn not_root(&self) -> Option<&str> {
        self.root.as_deref()
    }
}
