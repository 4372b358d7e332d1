//! Sources of machines of every kind, with made-up hosts.

use super::*;

const ONE_LINE: &str = "
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian bookworm main contrib # the archive
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] https://other.example/debian/12/prod bookworm main
deb http://security.example/debian-security bookworm-security main
deb cdrom:[Debian]/ bookworm main
";

const DEB822: &str = "\
Types: deb deb-src
# a comment between fields
URIs: https://mirror.example/debian/
Suites: trixie trixie-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://vendor.example/apt
Suites: stable
Components: main
Enabled: no

Types: deb
URIs: https://tool.example/deb
Suites: nodistro
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEYwG
 -----END PGP PUBLIC KEY BLOCK-----
";

#[test]
fn one_line_entries() {
    let sources = parse_one_line(ONE_LINE);
    assert_eq!(sources.len(), 4);
    assert_eq!(sources[0].components, ["main", "contrib"]);
    assert_eq!(sources[1].signed_by.as_deref(), Some("/k/a.gpg /k/b.gpg"));
    assert_eq!(sources[2].suite, "bookworm-security");
}

#[test]
fn deb822_stanzas() {
    let sources = parse_deb822(DEB822);
    let places: Vec<_> = sources.iter().map(|s| (s.uri.as_str(), s.suite.as_str())).collect();
    let expected = [
        ("https://mirror.example/debian/", "trixie"),
        ("https://mirror.example/debian/", "trixie-updates"),
        ("https://tool.example/deb", "nodistro"),
    ];
    assert_eq!(places, expected);
    let key = sources[2].signed_by.as_deref().unwrap();
    assert!(key.contains("\n -----BEGIN") && key.contains("\n .\n"), "{key}");
    assert_eq!(parse_deb822(&sources[2].to_deb822()), [sources[2].clone()]);
}

#[test]
fn another_suite_comes_from_the_debian_mirror_and_not_from_a_vendor() {
    let sources = parse_one_line(ONE_LINE);
    let backports = for_suite(&sources, "bullseye").unwrap();
    assert_eq!(backports.uri, "http://mirror.example/debian");
    assert_eq!(backports.suite, "bullseye");
    assert_eq!(backports.components, ["main"]);
}

#[test]
fn security_suites_come_from_the_machines_security_archive() {
    let sources = parse_one_line(ONE_LINE);
    let security = for_suite(&sources, "bullseye-security").unwrap();
    assert_eq!(security.uri, "http://security.example/debian-security");
}

#[test]
fn a_machine_without_a_security_entry_gets_the_path_beside_its_mirror() {
    let sources = parse_deb822(DEB822);
    let security = for_suite(&sources, "bookworm-security").unwrap();
    assert_eq!(security.uri, "https://mirror.example/debian-security");
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    assert_eq!(security.signed_by.as_deref(), Some(keyring));
}

#[test]
fn an_entry_of_the_suite_itself_goes_first() {
    let text = "deb http://mirror.example/debian bookworm main\n\
                deb http://near.example/debian bookworm-backports main\n";
    let sources = parse_one_line(text);
    assert_eq!(
        for_suite(&sources, "bookworm-backports").unwrap().uri,
        "http://near.example/debian"
    );
    assert_eq!(for_suite(&sources, "sid").unwrap().uri, "http://mirror.example/debian");
}

#[test]
fn a_machine_of_another_distribution_has_no_mirror() {
    let text = "deb http://mirror.example/ubuntu noble main\n";
    assert_eq!(for_suite(&parse_one_line(text), "bookworm"), None);
    assert_eq!(for_suite(&[], "bookworm"), None);
}
