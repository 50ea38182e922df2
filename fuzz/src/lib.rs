//! What fuzz targets share: a small data directory, and damage to it.

pub mod template;
