//! [`Arena`]: the memory of a memtable's nodes, and all the `unsafe` there is in this crate but that of `disk/os/window.rs`.
//!
//! A node is one entry: its link, its internal key and its stored value, side by side in a block.
//!
//! ```text
//!  header            key            value
//! [lengths, link] [internal key] [stored value]
//! ^ where a `NodeRef` points; 8 bytes are its unit
//! ```
//!
//! Invariants:
//!
//! - A node never moves and is never freed before its arena: what is borrowed from one lives as long as the arena.
//! - All of a node but its link is written once, before its [`NodeRef`] leaves [`Arena::add`], and never again; the link
//!   is an atomic. So readers on other threads need no more than to have got the reference through an acquiring load of
//!   what was stored with release.
//! - A [`NodeRef`] is made by [`Arena::add`] only, or read back from a number that one was turned into. A memtable has
//!   one arena, and no number of it goes anywhere else: each reference is to a node of that arena.
//! - Blocks grow with the arena, up to [`BLOCK_SIZE`]; a value of [`APART_SIZE_MIN`] bytes or more is an allocation of
//!   its own, so that little is left over at a block's end.
//! - The largest blocks are had from the system and given back to it as such, whatever the allocator would keep. Those of a memtable
//!   that is dropped are kept for the ones that come after it ([`Spare`]), as many as it had: memory that is used for the first time
//!   is cleared by the system, which is a tenth to a seventh of what filling a memtable takes.
//!
//! It knows nothing of order; `leaves.rs` does. Under loom each node has a cell beside its bytes, so that a read that
//! is not ordered after the write is found.
#![expect(
    unsafe_code,
    reason = "nodes of any length, side by side, are outside of what safe code can lay"
)]

use std::alloc::{self, Layout};
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, OnceLock};

use super::sync::{AtomicPtr, AtomicU32, Ordering};
use crate::event::PAYLOAD_SIZE_LIMIT;
use crate::tree::internal_key::{HEAD_SIZE, INTERNAL_KEY_SIZE_MAX, INTERNAL_KEY_SIZE_MIN};

/// What a block is made of.
type Unit = u64;
/// Offsets in a block, and sizes, are multiples of this, in bytes.
const UNIT: usize = size_of::<Unit>();
/// Bits of a reference that are an offset in a block.
const OFFSET_BITS: u32 = 18;
/// The largest block, in bytes: a huge page of the usual machines, and asked for as one.
pub(super) const BLOCK_SIZE: usize = UNIT << OFFSET_BITS;
/// The first block, in bytes.
const FIRST_BLOCK_SIZE: usize = 1 << 10;
/// A block is about this part of what the arena has already.
const GROWTH: usize = 4;
/// Values of at least so many bytes lie apart.
pub(super) const APART_SIZE_MIN: usize = 16 << 10;
/// Blocks that share one leaf of the table of blocks.
const LEAF_BLOCKS: usize = if cfg!(all(loom, test)) { 2 } else { 256 };
const LEAVES: usize = (1 << (32 - OFFSET_BITS)) / 256;

/// Bit of the value length that says that the value lies apart.
const APART: u32 = 1 << 31;
/// The window on a key begins behind partition and keyspace, which are the same for all keys of a list.
const WINDOW_START: usize = HEAD_SIZE;
const WINDOW_SIZE: usize = size_of::<u128>();

const _: () = assert!(WINDOW_START + WINDOW_SIZE <= INTERNAL_KEY_SIZE_MIN);
const _: () = assert!(PAYLOAD_SIZE_LIMIT < (APART as usize) / 2);
const _: () = assert!(INTERNAL_KEY_SIZE_MAX <= u16::MAX as usize);
const _: () = assert!(INTERNAL_KEY_SIZE_MAX + APART_SIZE_MIN + 1024 < BLOCK_SIZE / 8);
const _: () = assert!(align_of::<AtomicU32>() <= UNIT);

/// The first bytes of a key behind partition and keyspace, as a number that sorts as they do. What is shorter is
/// filled up with zeros: then equal windows say nothing.
#[inline]
pub(super) fn window(rest: &[u8]) -> u128 {
    if let Some(first) = rest.first_chunk::<WINDOW_SIZE>() {
        return u128::from_be_bytes(*first);
    }
    let mut filled = [0; WINDOW_SIZE];
    filled[..rest.len()].copy_from_slice(rest);
    u128::from_be_bytes(filled)
}

/// Where a node is: block and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRef(NonZeroU32);

impl NodeRef {
    /// The number to be stored in a link; never 0.
    #[inline]
    pub(super) fn number(self) -> u32 {
        self.0.get()
    }

    /// The reference that became `number`, `None` for 0. See the file's head: of the same memtable.
    #[inline]
    pub(super) fn from_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }
}

#[repr(C)]
struct Header {
    /// With [`APART`].
    value_length: u32,
    /// The next node in order.
    link: AtomicU32,
    key_length: u16,
    #[cfg(all(loom, test))]
    witness: loom::cell::UnsafeCell<()>,
}

const HEADER_SIZE: usize = size_of::<Header>();
const _: () =
    assert!(align_of::<Header>() <= UNIT && HEADER_SIZE.is_multiple_of(align_of::<Header>()));

/// A node that can be read.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    header: NonNull<Header>,
    arena: PhantomData<&'a Arena>,
}

// SAFETY: a `Node` is a shared reference to what does not change and to atomics: see the file's head.
unsafe impl Send for Node<'_> {}
// SAFETY: as above.
unsafe impl Sync for Node<'_> {}

impl<'a> Node<'a> {
    #[inline]
    fn header(self) -> &'a Header {
        // SAFETY: `header` points to a header that `Arena::add` wrote in a block of the arena borrowed for 'a, aligned
        // to `UNIT`; nothing of it but the link, an atomic, is written again.
        let header = unsafe { self.header.as_ref() };
        #[cfg(all(loom, test))]
        header.witness.with(|_| ());
        header
    }

    /// The internal key.
    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        let length = usize::from(self.header().key_length);
        // SAFETY: so many bytes of key were written behind the header, in the same block, and never change.
        unsafe {
            std::slice::from_raw_parts(self.header.as_ptr().cast::<u8>().add(HEADER_SIZE), length)
        }
    }

    /// The [`window`] on the key.
    #[inline]
    pub(super) fn window(self) -> u128 {
        let _ = self.header();
        // SAFETY: a key has at least `INTERNAL_KEY_SIZE_MIN` bytes, asserted to be enough for the window; they lie
        // behind the header and never change. An array of bytes has no alignment.
        let bytes = unsafe {
            let start = self.header.as_ptr().cast::<u8>().add(HEADER_SIZE + WINDOW_START);
            start.cast::<[u8; WINDOW_SIZE]>().read()
        };
        u128::from_be_bytes(bytes)
    }

    /// The stored value, as it stands in a table's entry.
    #[inline]
    pub(super) fn value(self) -> &'a [u8] {
        let header = self.header();
        let length = (header.value_length & !APART) as usize;
        // SAFETY: the value, or the pointer to it, was written right behind the key. What lies apart is freed with the
        // arena. Neither changes.
        unsafe {
            let start = self.header.as_ptr().cast::<u8>();
            let inline = start.add(HEADER_SIZE + usize::from(header.key_length));
            let start = if header.value_length & APART == 0 {
                inline.cast_const()
            } else {
                inline.cast::<*const u8>().read_unaligned()
            };
            std::slice::from_raw_parts(start, length)
        }
    }

    /// The link to the next node in order.
    #[inline]
    pub(super) fn link(self) -> &'a AtomicU32 {
        &self.header().link
    }
}

/// Where the next node goes. One an arena, in the hands of its writer.
#[derive(Default)]
pub(super) struct Bump {
    /// The block that is being filled; dangling before the first.
    block: Option<NonNull<Unit>>,
    number: u32,
    used: usize,
    size: usize,
    /// Bytes of the blocks before.
    filled: usize,
    blocks: u32,
    taken: Taken,
}

// SAFETY: the pointer is to memory that any thread may write that owns the `Bump`.
unsafe impl Send for Bump {}

/// What owns memory that nodes point into; freed with the arena.
enum Owned {
    Block(NonNull<Unit>, Layout),
    Mapped(MappedBlock),
    Value(*mut [u8]),
}

// SAFETY: these are owned allocations, touched again only when the arena is dropped.
unsafe impl Send for Owned {}

type Leaf = OnceLock<Box<[AtomicPtr<Unit>]>>;

/// See the file's head.
pub(super) struct Arena {
    leaves: [Leaf; LEAVES],
    owned: Mutex<Vec<Owned>>,
    spare: Arc<Spare>,
}

impl Default for Arena {
    fn default() -> Self {
        Self::with_spare(Arc::default())
    }
}

/// Blocks that arenas have given back and others, one after the other, take again.
#[derive(Default)]
pub(super) struct Spare {
    blocks: Mutex<Vec<MappedBlock>>,
}

impl Spare {
    fn take(&self) -> Option<MappedBlock> {
        self.blocks.lock().expect("nothing panics with it").pop()
    }

    /// Keeps these, or as many of them that there are no more than these.
    fn give(&self, given: Vec<MappedBlock>) {
        let Ok(mut blocks) = self.blocks.lock() else { return };
        let room = given.len().saturating_sub(blocks.len());
        blocks.extend(given.into_iter().take(room));
    }

    /// Their memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.blocks.lock().expect("nothing panics with it").len() * BLOCK_SIZE
    }
}

/// What all nodes so far took, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// By the nodes, what was left over before each included.
    pub(super) used: usize,
    /// From the system.
    pub(super) allocated: usize,
}

impl Arena {
    /// An empty arena that uses these blocks before it asks for others.
    pub(super) fn with_spare(spare: Arc<Spare>) -> Self {
        let leaves = [const { OnceLock::new() }; LEAVES];
        Self { leaves, owned: Mutex::default(), spare }
    }

    /// What it takes blocks of, and gives them back to.
    pub(super) fn spare(&self) -> &Arc<Spare> {
        &self.spare
    }

    /// The node at `at`.
    #[inline]
    pub(super) fn node(&self, at: NodeRef) -> Node<'_> {
        let number = at.number();
        let (block, offset) = (number >> OFFSET_BITS, number & ((1 << OFFSET_BITS) - 1));
        let leaf =
            self.leaves[block as usize / LEAF_BLOCKS].get().expect("a node's block is there");
        let start = leaf[block as usize % LEAF_BLOCKS].load(Ordering::Acquire);
        debug_assert!(!start.is_null());
        // SAFETY: `Arena::add` made the reference for this arena (see the file's head), after it had stored the
        // block's start; the offset is that of a header in it. The block lives as long as the arena.
        let header = unsafe { NonNull::new_unchecked(start.add(offset as usize)) };
        Node { header: header.cast(), arena: PhantomData }
    }

    /// Begins to bring a node near whose link is wanted soon.
    #[inline]
    pub(super) fn prefetch(&self, at: NodeRef) {
        prefetch_at(self.node(at).header.as_ptr());
    }

    /// The same of a node whose key is wanted too.
    #[inline]
    pub(super) fn prefetch_key(&self, at: NodeRef) {
        let start = self.node(at).header.as_ptr();
        prefetch_at(start);
        prefetch_at(start.wrapping_byte_add(LINE_SIZE));
    }

    /// Writes a node whose link leads nowhere. The value is `head` and `payload`. Other threads may have
    /// the reference once it is stored with release somewhere.
    ///
    /// # Panics
    /// If the key's length is not that of an internal key, or the arena is full, at 32 GiB.
    pub(super) fn add(
        &self,
        bump: &mut Bump,
        key: &[u8],
        (head, payload): (&[u8], &[u8]),
    ) -> NodeRef {
        assert!((INTERNAL_KEY_SIZE_MIN..=INTERNAL_KEY_SIZE_MAX).contains(&key.len()));
        let value_length = head.len() + payload.len();
        let apart = APART_SIZE_MIN <= value_length;
        let inline = if apart { size_of::<*const u8>() } else { value_length };
        let size = (HEADER_SIZE + key.len() + inline).next_multiple_of(UNIT);
        if bump.size - bump.used < size {
            bump.taken.used += bump.size - bump.used;
            bump.taken.allocated += self.next_block(bump, size);
            bump.taken.used += bump.used;
        }
        let start = bump.block.expect("there is a block").as_ptr();
        let offset = bump.used;
        let header = Header {
            value_length: u32::try_from(value_length).expect("bounded by PAYLOAD_SIZE_LIMIT")
                | if apart { APART } else { 0 },
            link: AtomicU32::new(0),
            key_length: u16::try_from(key.len()).expect("bounded by INTERNAL_KEY_SIZE_MAX"),
            #[cfg(all(loom, test))]
            witness: loom::cell::UnsafeCell::new(()),
        };
        // SAFETY: `size` bytes from `bump.used` on are in the block and in no node: `used` only grows, and this writer
        // alone has the `Bump`. All of them that are read later are written here. The start of a block is aligned to
        // `UNIT`, `used` is a multiple of it.
        unsafe {
            let at = start.add(offset / UNIT);
            at.cast::<Header>().write(header);
            let at = at.cast::<u8>().add(HEADER_SIZE);
            ptr::copy_nonoverlapping(key.as_ptr(), at, key.len());
            let at = at.add(key.len());
            if apart {
                at.cast::<*const u8>().write_unaligned(self.set_apart(head, payload));
                bump.taken.used += value_length;
                bump.taken.allocated += value_length;
            } else {
                ptr::copy_nonoverlapping(head.as_ptr(), at, head.len());
                ptr::copy_nonoverlapping(payload.as_ptr(), at.add(head.len()), payload.len());
            }
        }
        bump.used += size;
        bump.taken.used += size;
        let offset = u32::try_from(offset / UNIT).expect("within a block");
        let number = NonZeroU32::new(bump.number << OFFSET_BITS | offset);
        NodeRef(number.expect("no node is at the very beginning"))
    }

    /// Begins a block with room for `size` bytes; how many bytes that took from the system.
    fn next_block(&self, bump: &mut Bump, size: usize) -> usize {
        let number = bump.blocks;
        let leaf = self.leaves.get(number as usize / LEAF_BLOCKS).expect("at most 32 GiB of nodes");
        let mut allocated = 0;
        let leaf = leaf.get_or_init(|| {
            allocated += LEAF_BLOCKS * size_of::<AtomicPtr<Unit>>();
            (0..LEAF_BLOCKS).map(|_| AtomicPtr::new(ptr::null_mut())).collect()
        });
        let mut owned = self.owned.lock().expect("nothing panics with it");
        let grown = (bump.total() / GROWTH).next_power_of_two();
        let block_size =
            grown.clamp(FIRST_BLOCK_SIZE.max(UNIT + size), BLOCK_SIZE).next_multiple_of(UNIT);
        let mapped = if block_size == BLOCK_SIZE {
            self.spare.take().or_else(MappedBlock::new)
        } else {
            None
        };
        let block = mapped.as_ref().map_or_else(|| allocate(block_size), |block| block.0);
        owned.push(match mapped {
            Some(block) => Owned::Mapped(block),
            None => Owned::Block(block, layout_of(block_size)),
        });
        let start = block.as_ptr();
        leaf[number as usize % LEAF_BLOCKS].store(start, Ordering::Release);
        bump.filled += bump.size;
        bump.block = Some(block);
        (bump.number, bump.blocks) = (number, number + 1);
        // The reference to the beginning of the first block would be 0, which is none.
        (bump.used, bump.size) = (if number == 0 { UNIT } else { 0 }, block_size);
        allocated + block_size
    }

    fn set_apart(&self, head: &[u8], payload: &[u8]) -> *const u8 {
        let value = Box::into_raw([head, payload].concat().into_boxed_slice());
        self.owned.lock().expect("nothing panics with it").push(Owned::Value(value));
        value.cast::<u8>().cast_const()
    }
}

/// What comes near at once, in bytes.
const LINE_SIZE: usize = 64;

/// Begins to bring near what is read soon.
#[inline]
pub(in crate::tree) fn prefetch<T>(at: &T) {
    prefetch_at(at);
}

#[inline]
fn prefetch_at<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see, from wherever it is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

fn layout_of(block_size: usize) -> Layout {
    Layout::from_size_align(block_size, UNIT).expect("a block is small")
}

fn allocate(block_size: usize) -> NonNull<Unit> {
    let layout = layout_of(block_size);
    // SAFETY: the layout is not empty.
    let block = NonNull::new(unsafe { alloc::alloc(layout) }).map(NonNull::cast::<Unit>);
    block.unwrap_or_else(|| alloc::handle_alloc_error(layout))
}

/// A block of [`BLOCK_SIZE`] that is the system's, on a huge page of its own if there is one: walks over many blocks spend a
/// good part of their time in looking up pages, and one page a block spares most of it (a fifth of a search).
struct MappedBlock(NonNull<Unit>);

// SAFETY: the mapping is this value's alone, and belongs to no thread.
unsafe impl Send for MappedBlock {}

impl MappedBlock {
    /// `None` where that is not to be had.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn new() -> Option<Self> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which is nobody else's, twice as large as the block: that lies in it, aligned as huge pages are.
        // What is before and behind it is given back, and nothing points there. The advice changes no memory.
        unsafe {
            let whole = mmap_anonymous(ptr::null_mut(), 2 * BLOCK_SIZE, access, MapFlags::PRIVATE);
            let whole = whole.ok()?;
            let before = whole.align_offset(BLOCK_SIZE);
            let start = whole.byte_add(before);
            if 0 < before {
                let _ = munmap(whole, before);
            }
            let _ = munmap(start.byte_add(BLOCK_SIZE), BLOCK_SIZE - before);
            let _ = madvise(start, BLOCK_SIZE, Advice::LinuxHugepage);
            NonNull::new(start.cast()).map(Self)
        }
    }

    #[cfg(not(all(target_os = "linux", not(miri))))]
    fn new() -> Option<Self> {
        None
    }
}

impl Drop for MappedBlock {
    fn drop(&mut self) {
        #[cfg(all(target_os = "linux", not(miri)))]
        // SAFETY: it is a mapping of this value's, and no node in it is borrowed any more: an arena has its blocks for as long as
        // it lives. It cannot fail for a mapping that is there.
        unsafe {
            let _ = rustix::mm::munmap(self.0.as_ptr().cast(), BLOCK_SIZE);
        }
    }
}

impl Bump {
    /// What the nodes took.
    pub(super) fn taken(&self) -> Taken {
        self.taken
    }

    /// Bytes of all blocks so far.
    fn total(&self) -> usize {
        self.filled + self.size
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let Ok(owned) = self.owned.get_mut() else { return };
        let mut mapped = Vec::new();
        for owned in owned.drain(..) {
            // SAFETY: each came from `alloc` with this layout, or from `Box::into_raw`, and is freed here only. No node of this
            // arena is borrowed any more, and nothing in a block has to be dropped.
            unsafe {
                match owned {
                    Owned::Block(block, layout) => alloc::dealloc(block.as_ptr().cast(), layout),
                    Owned::Mapped(block) => mapped.push(block),
                    Owned::Value(value) => drop(Box::from_raw(value)),
                }
            }
        }
        self.spare.give(mapped);
    }
}
