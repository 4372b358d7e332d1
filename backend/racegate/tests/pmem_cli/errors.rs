//! A user's mistake costs one line that says what to do, and nothing is left behind.

use std::fs;

use crate::server::{place, place_behind};
use crate::support::Place;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("errors::command_lines", command_lines),
    ("errors::sizes", sizes),
    ("errors::mount_points", mount_points),
];

pub(crate) const ROOT_TESTS: &[(&str, fn())] = &[
    ("errors::no_fuse_device", no_fuse_device),
    ("errors::no_user_namespaces", no_user_namespaces),
    ("errors::no_permission", no_permission),
];

const ARGS: [&str; 2] = ["--pmem-file=image", "--mount-point=mount"];

/// It did not start: status 2.
fn refused(place: &Place, args: &[&str], words: &[&str]) {
    assert_eq!(place.fails(args, words), 2, "{args:?}");
}

fn command_lines() {
    let place = place();
    refused(&place, &[], &["--pmem-file", "--mount-point"]);
    refused(&place, &ARGS[..1], &["--mount-point"]);
    refused(&place, &["--pmem-file=none", "--mount-point=mount"], &["none", "does not exist"]);
    refused(&place, &[ARGS[0], ARGS[1], "--nonsense"], &["--nonsense"]);
    refused(&place, &[ARGS[0], ARGS[1], "--ready-fd=77"], &["--ready-fd", "77"]);
    let both = [ARGS[0], ARGS[1], "--storage=overlay", "--read-only"];
    refused(&place, &both, &["--read-only", "--storage file"]);
    fs::write(place.path("rules.toml"), "[[rule]]\nname = 'a'\n").expect("rules");
    refused(&place, &[ARGS[0], ARGS[1], "--rules=rules.toml"], &["rules.toml", "match"]);
}

fn sizes() {
    let place = place();
    place.file("image", (2 << 20) + 512);
    let words = ["image", "2097664 bytes", "multiple of 4096", "2 MiB", "truncate -s 4194304"];
    refused(&place, &ARGS, &words);
}

fn mount_points() {
    let place = place();
    let at = |point: &'static str| [ARGS[0], point];
    refused(&place, &at("--mount-point=none"), &["none", "does not exist", "mkdir"]);
    refused(&place, &at("--mount-point=image"), &["image", "not a folder"]);
    fs::write(place.path("mount").join("precious"), "data").expect("file");
    refused(&place, &ARGS, &["mount", "not empty"]);
    assert!(place.path("mount").join("precious").exists());
}

/// Behind a shell in namespaces of its own.
fn behind_shell(namespaces: &[&str], script: &str) -> Place {
    let words = [&["unshare"], namespaces, &["sh", "-c", script]].concat();
    place_behind(&words)
}

fn no_fuse_device() {
    let place = behind_shell(&["--mount"], r#"mount -t tmpfs none /dev && exec "$0" "$@""#);
    refused(&place, &ARGS, &["/dev/fuse", "modprobe fuse", "container"]);
}

fn no_user_namespaces() {
    let place = behind_shell(
        &["--user", "--map-root-user", "--mount"],
        r#"echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" "$@""#,
    );
    let args = [ARGS[0], ARGS[1], "--own-namespace"];
    refused(&place, &args, &["not permitted", "user namespaces", "user.max_user_namespaces"]);
}

fn no_permission() {
    let place = behind_shell(
        &["--mount"],
        r#"mknod node c 10 229 && chmod a+rwx . mount && chmod a+rw image && chmod 600 node &&
           mount --bind node /dev/fuse && rm -f node &&
           exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" "$@""#,
    );
    refused(&place, &ARGS, &["/dev/fuse", "permission", "chmod 666"]);
}
