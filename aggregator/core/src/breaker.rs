//! When injection was seen to do harm, less is injected until something proves that it is safe again.

mod record;

pub use record::{CONFIG_MAP, Cause, KEY, Level, OwnerRef, Record, Reduction, Trip};
