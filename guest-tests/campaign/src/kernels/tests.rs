use super::*;
use crate::device::Device;

fn record(package: &str, depends: &str) -> Record {
    Record {
        package: package.to_owned(),
        version: "1".to_owned(),
        bytes: 0,
        sha256: String::new(),
        depends: depends.to_owned(),
    }
}

#[test]
fn a_kernel_in_one_package_has_no_companions() {
    let depends = "kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120) | linux-initramfs-tool";
    let package = "linux-image-5.10.0-32-cloud-amd64";
    assert_eq!(companions(&record(package, depends)), Vec::<String>::new());
}

#[test]
fn a_split_kernel_brings_image_and_modules() {
    let depends =
        "linux-base-7-amd64 (= 1), linux-binary-7-amd64 (= 1), linux-modules-7-amd64 (= 1)";
    let expected = ["linux-binary-7-amd64", "linux-modules-7-amd64"];
    assert_eq!(companions(&record("linux-image-7-amd64", depends)), expected);
    let binary = record("linux-binary-7-amd64", "linux-base-7-amd64 (= 1)");
    assert_eq!(companions(&binary), ["linux-modules-7-amd64"]);
}

#[test]
fn the_users_own_image_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let kernels = Kernels::new(&Cache::at(folder.path().join("cache")).unwrap());
    let fetch = |bytes: &[u8]| {
        let image = folder.path().join("bzImage");
        fs::write(&image, bytes).unwrap();
        kernels.fetch(&Spec::File { image, modules: None })
    };
    assert!(matches!(fetch(b"short"), Err(KernelError::NotAnImage { .. })));
    assert!(matches!(fetch(&[0; 4096]), Err(KernelError::NotAnImage { .. })));
    let mut image = vec![0; 4096];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    let kernel = fetch(&image).unwrap();
    assert!(kernel.image.is_absolute());
    assert_eq!(kernel.modules(Device::Blk.modules()).unwrap(), []);
}
