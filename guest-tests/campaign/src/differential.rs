//! The engine of delayed allocation against a real kernel: random lists of operations run on
//! both, and after every operation the kernel's extent status, extent map, sizes and counters
//! must be what the engine predicts.
//!
//! In: an [`Order`]. Out: a [`Report`]; each list that differs is shrunk to a short one.
//! Must not know: how reports look.

mod compare;
mod lab;
mod list;
mod predict;
mod shape;
mod shrink;

use std::time::Instant;

use serde::Serialize;

pub use compare::{Difference, Failure, Row};
pub use list::{Script, draw};
pub use shape::Shape;

use crate::cache::Cache;
use crate::guest::GuestError;
use crate::image::ImageError;
use crate::kernels::Kernel;
use crate::qemu::{Accel, Qemu};
use compare::{Ground, compare};
use lab::Lab;

/// Lists sent to the guest at a time: what fits one frame of the link.
const BATCH: usize = 24;
/// Differing lists of one shape that are shrunk; the others are counted.
const MOST_SHRUNK: usize = 3;

/// The comparison could not be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DifferentialError {
    /// The guest does not boot, or fails again and again.
    #[error("The guest cannot run the lists")]
    Guest {
        /// Why.
        source: Box<GuestError>,
    },
    /// The base image cannot be made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The operator asked racegate to end.
    #[error("Interrupted")]
    Interrupted,
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct Order {
    /// The kernel that runs.
    pub kernel: Kernel,
    /// The engine's kernel: the same version, or a wrong one that must be caught.
    pub variant: delalloc::Kernel,
    /// The program that runs the guest.
    pub qemu: Qemu,
    /// How guest code runs.
    pub accel: Accel,
    /// Where base images are kept.
    pub cache: Cache,
    /// File systems to compare on.
    pub shapes: Vec<Shape>,
    /// Lists for each of them.
    pub lists: Lists,
    /// Decides every list that is drawn.
    pub seed: u64,
}

/// Lists of operations to run.
#[derive(Clone, Debug)]
pub enum Lists {
    /// These of those that the seed decides.
    Drawn {
        /// Their numbers, from 0.
        numbers: std::ops::Range<u32>,
        /// Operations in each.
        ops: u32,
    },
    /// These, written by hand.
    Given(Vec<Script>),
}

impl Lists {
    /// Their numbers.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        match self {
            Lists::Drawn { numbers, .. } => numbers.clone(),
            Lists::Given(scripts) => 0..scripts.len() as u32,
        }
    }
}

impl Order {
    /// The list of a number below the end of [`Lists::numbers`].
    fn script(&self, geo: delalloc::Geometry, number: u32) -> Script {
        match &self.lists {
            Lists::Drawn { ops, .. } => draw(self.variant, geo, self.seed, number, *ops),
            Lists::Given(scripts) => scripts[number as usize].clone(),
        }
    }
}

/// What came out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One for each file system.
    pub shapes: Vec<ShapeReport>,
}

/// What came out on one file system.
#[derive(Clone, Debug, Serialize)]
pub struct ShapeReport {
    /// Its name.
    pub geometry: &'static str,
    /// Lists compared.
    pub lists: u32,
    /// Operations compared.
    pub operations: u64,
    /// Blocks for which the engine was told whether the kernel had cached their extent.
    pub told: u64,
    /// Lists that end in a bug that the kernel is known to have.
    pub known: u32,
    /// Lists that differ.
    pub differing: u32,
    /// The first of them.
    pub findings: Vec<Finding>,
    /// What e2fsck says about the file system afterwards, if it is not content.
    pub e2fsck: Option<String>,
    /// Wall time in seconds, booting included.
    pub seconds: f64,
}

/// A list that differs.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Its number.
    pub list: u32,
    /// Whether the extent map was asked for after each operation of the shrunk list.
    pub map: bool,
    /// Where the shrunk list differs.
    pub failure: Failure,
}

impl Report {
    /// Whether anything differs.
    pub fn differs(&self) -> bool {
        self.shapes.iter().any(|shape| shape.differing != 0 || shape.e2fsck.is_some())
    }
}

/// Compares. `progress` is told the shape, how many of its lists are done, and how many differ.
pub fn run(
    order: &Order,
    mut progress: impl FnMut(Shape, u32, u32),
) -> Result<Report, DifferentialError> {
    let shapes = order.shapes.iter().map(|&shape| {
        on_shape(order, shape, &mut |done, differing| progress(shape, done, differing))
    });
    Ok(Report { shapes: shapes.collect::<Result<_, _>>()? })
}

fn on_shape(
    order: &Order,
    shape: Shape,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<ShapeReport, DifferentialError> {
    let started = Instant::now();
    let geo = shape.geometry(&order.variant);
    let blocks = shape.bytes() / u64::from(geo.block_bytes);
    let ground = Ground { kernel: order.variant, geo, blocks };
    let mut lab = Lab::new(order, shape)?;
    let mut report = ShapeReport {
        geometry: shape.name(),
        lists: 0,
        operations: 0,
        told: 0,
        known: 0,
        differing: 0,
        findings: Vec::new(),
        e2fsck: None,
        seconds: 0.0,
    };
    let numbers: Vec<u32> = order.lists.numbers().collect();
    let mut left = &numbers[..];
    while !left.is_empty() {
        let batch = left.iter().take(BATCH);
        let scripts: Vec<Script> = batch.map(|&number| order.script(geo, number)).collect();
        let results = lab.run(&scripts)?;
        let mut done = 0;
        for ((&list, script), result) in left.iter().zip(&scripts).zip(&results) {
            done += 1;
            report.lists += 1;
            report.operations += script.ops.len() as u64;
            let failure = match compare(&ground, script, result) {
                Ok(told) => {
                    report.told += u64::from(told);
                    continue;
                }
                Err(failure) => failure,
            };
            let spoilt = failure.known.is_some() || result.left != 0;
            if spoilt {
                // What is left behind would be held against the lists that come next.
                lab.renew();
            }
            if failure.known.is_some() {
                report.known += 1;
            } else {
                report.differing += 1;
                if report.findings.len() < MOST_SHRUNK {
                    let (script, failure) = shrink::shrink(&mut lab, &ground, script, failure)?;
                    report.findings.push(Finding { list, map: script.map, failure });
                }
            }
            if spoilt {
                break;
            }
        }
        left = &left[done..];
        progress(report.lists, report.differing);
    }
    report.e2fsck = lab.close()?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}
