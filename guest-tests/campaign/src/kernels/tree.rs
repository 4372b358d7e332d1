//! What is where in an unpacked kernel package.
//!
//! In: a folder. Out: the image, the folder of modules, and the modules by name.
//! Must not know: what a module needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::KernelError;

/// Where `header` is in a bzImage, and what it says ("HdrS"): Linux `Documentation/arch/x86/boot.rst`,
/// "The Real-Mode Kernel Header".
const HEADER_OFFSET: u64 = 0x202;
const HEADER_MAGIC: &[u8; 4] = b"HdrS";

/// Endings of module files.
const ENDINGS: &[&str] = &[".ko", ".ko.xz", ".ko.zst", ".ko.gz"];

/// The kernel image of a package that was unpacked in `root`.
pub(super) fn image_in(root: &Path) -> Result<PathBuf, KernelError> {
    let found = entries(&root.join("boot"))
        .into_iter()
        .find(|path| name_of(path).starts_with("vmlinuz-"))
        .or_else(|| Some(modules_in(root)?.join("vmlinuz")).filter(|path| path.is_file()))
        .ok_or_else(|| KernelError::NoImage { path: root.to_owned() })?;
    check_image(&found)?;
    Ok(found)
}

/// Whether `path` is an image that QEMU can boot.
pub(super) fn check_image(path: &Path) -> Result<(), KernelError> {
    let mut magic = [0; 4];
    let mut read = || {
        let mut file = fs::File::open(path)?;
        file.seek(SeekFrom::Start(HEADER_OFFSET))?;
        file.read_exact(&mut magic)
    };
    match read() {
        Ok(()) if &magic == HEADER_MAGIC => Ok(()),
        Ok(()) => Err(KernelError::NotAnImage { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(KernelError::NotAnImage { path: path.to_owned() })
        }
        Err(source) => Err(KernelError::Read { path: path.to_owned(), source }),
    }
}

/// The folder `lib/modules/RELEASE` of a package that was unpacked in `root`.
pub(super) fn modules_in(root: &Path) -> Option<PathBuf> {
    ["lib/modules", "usr/lib/modules"]
        .iter()
        .flat_map(|place| entries(&root.join(place)))
        .find(|path| path.is_dir())
}

/// The modules of one kernel.
#[derive(Debug)]
pub(super) struct Tree {
    files: BTreeMap<String, PathBuf>,
    /// `None`: the package has no list, as those of Linux 7 do not.
    built_in: Option<BTreeSet<String>>,
}

impl Tree {
    /// Reads what is below `folder`.
    pub(super) fn read(folder: &Path) -> Result<Tree, KernelError> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let list = fs::read_dir(&folder)
                .map_err(|source| KernelError::Read { path: folder.clone(), source })?;
            for entry in list {
                let entry =
                    entry.map_err(|source| KernelError::Read { path: folder.clone(), source })?;
                // Links (`build`, `source`) lead out of the tree.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                } else if let Some(name) = module_name(&name_of(&entry.path())) {
                    files.insert(name, entry.path());
                }
            }
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).ok();
        let name = |line: &str| module_name(line.rsplit('/').next().unwrap_or(line));
        let built_in = list.map(|list| list.lines().filter_map(name).collect());
        Ok(Tree { files, built_in })
    }

    /// The file of module `name`.
    pub(super) fn file(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(PathBuf::as_path)
    }

    /// Whether `name` is a module that was built into the image. Without a list, what has no file is
    /// taken to be.
    pub(super) fn is_built_in(&self, name: &str) -> bool {
        match &self.built_in {
            Some(list) => list.contains(name),
            None => !self.files.contains_key(name),
        }
    }
}

/// The name of the module in file `file`: without ending, dashes as underscores.
pub(super) fn module_name(file: &str) -> Option<String> {
    let stem = ENDINGS.iter().find_map(|ending| file.strip_suffix(ending))?;
    Some(stem.replace('-', "_"))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is in `folder`, sorted; nothing if it is not there.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = list.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}
