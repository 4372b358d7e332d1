//! Base images: sparse files with a file system made by the real mkfs.ext4, the same bytes for the
//! same options and the same e2fsprogs.
//!
//! In: a [`ImageSpec`]. Out: a file in the cache that nobody may change (trials write to an overlay
//! or to a [`copy`]).
//! Must not know: what is tested on it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cache::{Cache, CacheError};
use crate::process::{self, ProcessError};

/// Making a file system in a sparse file takes a second; a TiB takes longer.
const MKFS_LIMIT: Duration = Duration::from_secs(300);

/// The UUID of every file system, and the seed of its directory hashes.
const UUID: &str = "72616365-6761-7465-8000-000000000001";

/// The time at which every file system was made, in seconds (2024-01-01T00:00:00Z); e2fsprogs takes
/// it for now. Never 0, which it takes for "never".
const TIME: &str = "1704067200";

/// The image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A size that is no number of blocks.
    #[error("An image of {bytes} bytes cannot be made: it must be a multiple of 4096, not 0")]
    Size {
        /// The size.
        bytes: u64,
    },
    /// A file could not be made or read.
    #[error("Could not use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// mkfs.ext4 failed.
    #[error(transparent)]
    Mkfs(#[from] ProcessError),
}

/// An image with one ext4 file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// Size of the image.
    pub bytes: u64,
    /// Options of mkfs.ext4: `-b 4096 -O ^metadata_csum`, and so on, one word each. The UUID, the
    /// hash seed and the lazy initialisation are set here and must not be given; `-E` may be.
    pub mkfs: Vec<String>,
}

impl ImageSpec {
    /// An image of `bytes` bytes made with mkfs.ext4's defaults.
    pub fn new(bytes: u64) -> ImageSpec {
        ImageSpec { bytes, mkfs: Vec::new() }
    }
}

/// The image of `spec`, made if it is not in the cache; it must not be changed.
pub fn base(cache: &Cache, spec: &ImageSpec) -> Result<PathBuf, ImageError> {
    let program = process::command("mkfs.ext4", "e2fsprogs")?;
    let place = Path::new("images").join(format!("{}.ext4", key(spec)?));
    let _lock = cache.lock("images")?;
    if cache.path(&place).is_file() {
        return Ok(cache.path(&place));
    }
    let scratch = cache.scratch()?;
    let image = scratch.path().join("image");
    make(program, &image, spec)?;
    let path = cache.publish(&image, &place)?;
    let io = |source| ImageError::Io { path: path.clone(), source };
    let mut permissions = fs::metadata(&path).map_err(io)?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).map_err(io)?;
    Ok(path)
}

/// A copy of `image` that may be changed, still sparse; it shares blocks where the host can.
pub fn copy(image: &Path, to: &Path) -> Result<(), ProcessError> {
    let mut command = process::command("cp", "coreutils")?;
    command.args(["--sparse=always", "--reflink=auto", "--no-preserve=mode", "--"]);
    command.arg(image).arg(to);
    process::run(command, MKFS_LIMIT)?;
    Ok(())
}

/// Makes the file system of `spec` in the new file `image`.
fn make(mut mkfs: std::process::Command, image: &Path, spec: &ImageSpec) -> Result<(), ImageError> {
    if spec.bytes == 0 || !spec.bytes.is_multiple_of(4096) {
        return Err(ImageError::Size { bytes: spec.bytes });
    }
    let sized = File::create(image).and_then(|file| file.set_len(spec.bytes));
    sized.map_err(|source| ImageError::Io { path: image.to_owned(), source })?;
    mkfs.env("E2FSPROGS_FAKE_TIME", TIME).env("SOURCE_DATE_EPOCH", TIME);
    mkfs.args(["-F", "-q", "-U", UUID]).args(arguments(&spec.mkfs)).arg(image);
    process::run(mkfs, MKFS_LIMIT)?;
    Ok(())
}

/// The user's options with the fixed ones: mkfs.ext4 heeds only the last `-E`, so they are joined.
fn arguments(options: &[String]) -> Vec<String> {
    let fixed = format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard");
    let mut extended = fixed;
    let mut arguments = Vec::new();
    let mut words = options.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix("-E") {
            Some("") => {
                if let Some(value) = words.next() {
                    extended = format!("{extended},{value}");
                }
            }
            Some(value) => extended = format!("{extended},{value}"),
            None => arguments.push(word.clone()),
        }
    }
    arguments.extend(["-E".to_owned(), extended]);
    arguments
}

/// Names an image by all that decides its bytes: options, program, and the program's configuration.
fn key(spec: &ImageSpec) -> Result<String, ImageError> {
    let mut version = process::command("mkfs.ext4", "e2fsprogs")?;
    version.arg("-V");
    let version = process::capture(version, MKFS_LIMIT, |_| {})?.stderr;
    // Without the file, the program's built-in defaults are in force.
    let config = fs::read("/etc/mke2fs.conf").unwrap_or_default();
    let mut hash = Sha256::new();
    for part in [&version, &config] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(spec.bytes.to_le_bytes());
    for word in arguments(&spec.mkfs) {
        hash.update(word.as_bytes());
        hash.update([0]);
    }
    Ok(crate::apt::hex(&hash.finalize()[..16]))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        (folder, cache)
    }

    #[test]
    fn equal_options_give_equal_bytes() {
        let (_first, one) = cache();
        let (_second, other) = cache();
        let spec = ImageSpec {
            bytes: 64 * MIB,
            mkfs: ["-b", "4096", "-E", "stride=2"].map(str::to_owned).to_vec(),
        };
        let (one, other) = (base(&one, &spec).unwrap(), base(&other, &spec).unwrap());
        assert!(fs::read(&one).unwrap() == fs::read(&other).unwrap());
    }

    #[test]
    fn an_image_is_sparse_cached_and_not_to_be_changed() {
        let (_folder, cache) = cache();
        let spec = ImageSpec::new(256 * MIB);
        let path = base(&cache, &spec).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 256 * MIB);
        assert!(metadata.blocks() * 512 < 64 * MIB);
        assert!(metadata.permissions().readonly());
        assert_eq!(base(&cache, &spec).unwrap(), path);
        assert_eq!(fs::metadata(&path).unwrap().ino(), metadata.ino());
        let other = ImageSpec { mkfs: vec!["-N".to_owned(), "64".to_owned()], ..spec };
        assert_ne!(base(&cache, &other).unwrap(), path);

        let copied = cache.path("copy");
        copy(&path, &copied).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(&copied).unwrap());
        assert!(!fs::metadata(&copied).unwrap().permissions().readonly());
    }

    #[test]
    fn the_users_extended_options_are_kept() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for given in ["-b 1024 -E stride=2", "-b 1024 -Estride=2"] {
            let arguments = arguments(&words(given));
            assert_eq!(arguments[..3], words("-b 1024 -E"));
            assert!(arguments[3].ends_with(",stride=2") && arguments.len() == 4, "{arguments:?}");
        }
    }

    #[test]
    fn what_mkfs_refuses_is_an_error_with_its_words() {
        let (_folder, cache) = cache();
        let spec = ImageSpec { bytes: 64 * MIB, mkfs: vec!["-O".into(), "no_such".into()] };
        let error = base(&cache, &spec).unwrap_err().to_string();
        assert!(error.contains("no_such"), "{error}");
        let spec = ImageSpec::new(1000);
        assert!(matches!(base(&cache, &spec), Err(ImageError::Size { .. })));
    }
}
