use super::*;

#[test]
fn records() {
    let text = "Package: linux-image-1\nVersion: 5.10.223-1\nDepends: kmod, x (>= 1)\nSize: 12\n\
                SHA256: ab\nDescription: SHA256: no\n\nPackage: other\n";
    let record = parse_record(text).unwrap();
    assert_eq!((record.package.as_str(), record.bytes), ("linux-image-1", 12));
    assert_eq!((record.sha256.as_str(), record.depends.as_str()), ("ab", "kmod, x (>= 1)"));
    assert_eq!(parse_record(""), None);
}

#[test]
fn status_lines() {
    assert_eq!(downloaded("dlstatus:1:25:Retrieving file 1 of 1"), Some(0.25));
    assert_eq!(downloaded("dlstatus:1:250:x"), Some(1.0));
    assert_eq!(downloaded("Get:1 http://mirror.example x"), None);
}

#[test]
fn a_changed_package_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.deb");
    fs::write(&file, b"abc").unwrap();
    let mut record = Record {
        package: "p".to_owned(),
        version: "1".to_owned(),
        bytes: 3,
        // FIPS 180-2, appendix B.1.
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
        depends: String::new(),
    };
    check(&file, &record).unwrap();
    record.sha256.replace_range(0..1, "c");
    assert!(matches!(check(&file, &record), Err(AptError::WrongHash { .. })));
}

#[test]
fn a_long_list_is_cut() {
    let names: Vec<String> = (0..12).map(|number| format!("n{number}")).collect();
    assert!(few(&names).starts_with("n2, ") && few(&names).ends_with("n11 and 2 more"));
    assert_eq!(few(&[]), "nothing like it");
}
