//! A whole data directory with damage anywhere: verified, dumped, repaired, opened, read. Checksums of blocks and frames are not looked at
//! in half of the runs, so that the damage comes to what is behind them.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use starling_clock::mutation::{self, Mutation};
use starling_fuzz::template::{self, Template};
use starling_storage::offline::{DumpFilter, DumpKind, RepairOptions, dump, repair, verify};
use starling_storage::{Error, Storage};

static TEMPLATE: LazyLock<Template> = LazyLock::new(Template::new);

fuzz_target!(|data: &[u8]| {
    let Some((&mode, patches)) = data.split_first() else { return };
    let template = &*TEMPLATE;
    let disk = Arc::new(template.patched(patches));
    let unchecked = mode & 1 != 0;
    mutation::set(unchecked.then_some(Mutation::ServeUnchecked));
    let _ = verify(&*disk, |_, _| {});
    for kind in [
        DumpKind::State,
        DumpKind::Manifest,
        DumpKind::Tables,
        DumpKind::Wal,
        DumpKind::Changes,
        DumpKind::Hints,
    ] {
        let _ = dump::<_, Error>(&*disk, kind, &DumpFilter::default(), |_| Ok(()));
    }
    if mode & 2 != 0 {
        let identity = Some(template::identity());
        let options =
            RepairOptions { write: true, cut_log: true, drop_state: true, identity, log_salt: 9 };
        let _ = repair(&disk, &options, |_, _| {});
    }
    if let Ok(mut storage) =
        Storage::open(Arc::clone(&disk), template::config(), template::identity())
    {
        template::read_all(&storage);
        for _ in 0..20 {
            let _ = storage.work(1);
        }
    }
    mutation::set(None);
});
