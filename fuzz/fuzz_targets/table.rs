//! A table with damage anywhere, behind checksums that are not looked at: opened, walked, asked for keys.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use starling_clock::mutation::{self, Mutation};
use starling_fuzz::template::{self, Template};
use starling_storage::Storage;

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::of_tables);

fuzz_target!(|data: &[u8]| {
    let disk = Arc::new(TEMPLATE.patched(data));
    mutation::set(Some(Mutation::ServeUnchecked));
    if let Ok(storage) = Storage::open(disk, template::config(), template::identity()) {
        template::read_all(&storage);
    }
    mutation::set(None);
});
