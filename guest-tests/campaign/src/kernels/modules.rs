//! Which modules to load, in which order, uncompressed.
//!
//! In: a [`Tree`] and the names wanted. Out: [`Module`]s, each after what it needs.
//! Must not know: how they are loaded.
//!
//! A package brings no `modules.dep` (depmod makes it when the package is installed), so what a
//! module needs is read where depmod and modpost put it: in the module's own `.modinfo` section,
//! fields `depends` and `softdep`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use object::{Object as _, ObjectSection as _};
use sha2::{Digest as _, Sha256};

use super::KernelError;
use super::tree::{Tree, module_name};
use crate::cache::Cache;
use crate::process;

/// Unpacking one module; the largest takes a fraction of a second.
const UNPACK_LIMIT: Duration = Duration::from_secs(60);

/// One kernel module as a file that the kernel can load as it is (not compressed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name as `lsmod` shows it: dashes are underscores.
    pub name: String,
    /// The `.ko` file on the host.
    pub path: PathBuf,
}

/// The modules `wanted` and all that they need, in load order.
pub(super) fn resolve(
    kernel: &str,
    tree: &Tree,
    wanted: &[&str],
    cache: &Cache,
) -> Result<Vec<Module>, KernelError> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for name in wanted {
        visit(kernel, tree, &name.replace('-', "_"), true, cache, &mut seen, &mut found)?;
    }
    Ok(found)
}

/// Adds `name` after what it needs. A module that is merely better loaded before (`softdep`) may be
/// missing.
fn visit(
    kernel: &str,
    tree: &Tree,
    name: &str,
    required: bool,
    cache: &Cache,
    seen: &mut BTreeSet<String>,
    found: &mut Vec<Module>,
) -> Result<(), KernelError> {
    // Inserted before its needs are looked at, so a circle ends.
    if !seen.insert(name.to_owned()) || tree.is_built_in(name) {
        return Ok(());
    }
    let Some(file) = tree.file(name) else {
        if !required {
            return Ok(());
        }
        let (kernel, module) = (kernel.to_owned(), name.to_owned());
        return Err(KernelError::NoModule { kernel, module });
    };
    let path = uncompressed(file, cache)?;
    let bytes =
        fs::read(&path).map_err(|source| KernelError::Read { path: path.clone(), source })?;
    let needs = needs(&bytes).ok_or_else(|| KernelError::NotAModule { path: file.to_owned() })?;
    for need in needs.before {
        visit(kernel, tree, &need, false, cache, seen, found)?;
    }
    for need in needs.depends {
        visit(kernel, tree, &need, true, cache, seen, found)?;
    }
    found.push(Module { name: name.to_owned(), path });
    Ok(())
}

/// What a module says that it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    depends: Vec<String>,
    before: Vec<String>,
}

/// Reads `.modinfo`: strings `field=value`, each ended by NUL. `None` if it is not a module.
fn needs(module: &[u8]) -> Option<Needs> {
    let file = object::File::parse(module).ok()?;
    let section = file.section_by_name(".modinfo")?;
    Some(parse_modinfo(section.data().ok()?))
}

fn parse_modinfo(data: &[u8]) -> Needs {
    let mut needs = Needs::default();
    for field in data.split(|&byte| byte == 0).filter_map(|field| std::str::from_utf8(field).ok()) {
        if let Some(list) = field.strip_prefix("depends=") {
            let names = list.split(',').filter(|name| !name.is_empty());
            needs.depends.extend(names.map(|name| name.replace('-', "_")));
        } else if let Some(list) = field.strip_prefix("softdep=") {
            // "pre: a b post: c", as modprobe.d(5) has it.
            let mut pre = false;
            for word in list.split_whitespace() {
                match word {
                    "pre:" => pre = true,
                    "post:" => pre = false,
                    name if pre => needs.before.push(name.replace('-', "_")),
                    _ => {}
                }
            }
        }
    }
    needs
}

/// The file itself, or its uncompressed copy in the cache, kept by the hash of the original.
fn uncompressed(file: &Path, cache: &Cache) -> Result<PathBuf, KernelError> {
    let (program, package) = match file.extension().and_then(|ending| ending.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return Ok(file.to_owned()),
    };
    let bytes =
        fs::read(file).map_err(|source| KernelError::Read { path: file.to_owned(), source })?;
    let hash = crate::apt::hex(&Sha256::digest(&bytes)[..16]);
    let name = file.file_name().and_then(|name| module_name(name.to_str()?)).unwrap_or_default();
    let place = Path::new("modules").join(hash).join(format!("{name}.ko"));
    if cache.path(&place).is_file() {
        return Ok(cache.path(&place));
    }
    let failed = |source| KernelError::Unpack { path: file.to_owned(), source };
    let mut command = process::command(program, package).map_err(failed)?;
    command.args(["-d", "-c", "--"]).arg(file);
    let output = process::run(command, UNPACK_LIMIT).map_err(failed)?;
    Ok(cache.write(&place, &output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_fields() {
        let data =
            b"license=GPL\0depends=virtio,virtio-ring\0softdep=pre: a-b c post: d\0depends=\0";
        let needs = parse_modinfo(data);
        assert_eq!(needs.depends, ["virtio", "virtio_ring"]);
        assert_eq!(needs.before, ["a_b", "c"]);
    }

    #[test]
    fn what_is_not_a_module_is_refused() {
        assert_eq!(needs(b"not an ELF file"), None);
        let program = fs::read("/bin/true").unwrap();
        assert_eq!(needs(&program), None);
    }
}
