//! A layer between SQLite and the operating system. It records what SQLite writes and syncs, and can fail.
//!
//! The layer replaces three methods of each file that SQLite opens, and forwards to the original ones. It does not sync.

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard};

use rusqlite::ffi::{
    SQLITE_FULL, SQLITE_IOERR_FSYNC, SQLITE_OK, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_WAL, sqlite3_file,
    sqlite3_filename, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs, sqlite3_vfs_find, sqlite3_vfs_register,
};

/// What happened to a file, or what the engine acknowledged, in one order.
pub enum Event {
    Write { file: String, at: usize, data: Vec<u8> },
    Truncate { file: String, size: usize },
    Sync { file: String },
    Acknowledged(String),
}

/// Whether events are recorded.
pub static RECORDS: AtomicBool = AtomicBool::new(false);
/// Whether each sync fails.
pub static SYNCS_FAIL: AtomicBool = AtomicBool::new(false);
/// Whether the disk is full.
pub static IS_FULL: AtomicBool = AtomicBool::new(false);

static EVENTS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

/// The files that are open, by the address of SQLite's handle.
static FILES: LazyLock<Mutex<HashMap<usize, File>>> = LazyLock::new(Mutex::default);

struct File {
    name: String,
    original: &'static sqlite3_io_methods,
}

fn files() -> MutexGuard<'static, HashMap<usize, File>> {
    FILES.lock().unwrap()
}

pub fn record(event: Event) {
    if RECORDS.load(Ordering::SeqCst) {
        EVENTS.lock().unwrap().push(event);
    }
}

/// Returns the events so far, and forgets them.
pub fn take() -> Vec<Event> {
    std::mem::take(&mut EVENTS.lock().unwrap())
}

/// Makes SQLite open all further files of this process through this layer.
pub fn install() {
    // SAFETY: the default layer lives as long as the process, and so does its copy.
    unsafe {
        let default = sqlite3_vfs_find(std::ptr::null());
        let mut layer = *default;
        layer.zName = c"recorded".as_ptr();
        layer.pNext = std::ptr::null_mut();
        layer.pAppData = default.cast();
        layer.xOpen = Some(open);
        layer.xDelete = Some(delete);
        assert_eq!(sqlite3_vfs_register(Box::leak(Box::new(layer)), 1), SQLITE_OK);
    }
}

// SAFETY of all functions below: SQLite calls them with valid arguments, and the layer passes these on unchanged to the
// functions that they replace. Those expect the default layer, which `pAppData` of this layer holds.

unsafe extern "C" fn open(
    layer: *mut sqlite3_vfs,
    name: sqlite3_filename,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    unsafe {
        let default: *mut sqlite3_vfs = (*layer).pAppData.cast();
        let code = ((*default).xOpen.unwrap())(default, name, file, flags, out_flags);
        if code == SQLITE_OK && flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL) != 0 {
            let original: &'static sqlite3_io_methods = &*(*file).pMethods;
            let methods = sqlite3_io_methods {
                xWrite: Some(write),
                xTruncate: Some(truncate),
                xSync: Some(sync),
                xClose: Some(close),
                ..*original
            };
            let path = CStr::from_ptr(name).to_str().unwrap();
            let name = path.rsplit('/').next().unwrap().to_owned();
            files().insert(file as usize, File { name, original });
            (*file).pMethods = Box::leak(Box::new(methods));
        }
        code
    }
}

unsafe extern "C" fn delete(layer: *mut sqlite3_vfs, name: *const std::ffi::c_char, sync: c_int) -> c_int {
    unsafe {
        let default: *mut sqlite3_vfs = (*layer).pAppData.cast();
        ((*default).xDelete.unwrap())(default, name, sync)
    }
}

fn of(file: *mut sqlite3_file) -> (String, &'static sqlite3_io_methods) {
    let files = files();
    let File { name, original } = &files[&(file as usize)];
    (name.clone(), original)
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    size: c_int,
    at: sqlite3_int64,
) -> c_int {
    if IS_FULL.load(Ordering::SeqCst) {
        return SQLITE_FULL;
    }
    let (name, original) = of(file);
    unsafe {
        let code = (original.xWrite.unwrap())(file, data, size, at);
        if code == SQLITE_OK && RECORDS.load(Ordering::SeqCst) {
            let data = std::slice::from_raw_parts(data.cast::<u8>(), size as usize).to_vec();
            record(Event::Write { file: name, at: at as usize, data });
        }
        code
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    let (name, original) = of(file);
    let code = unsafe { (original.xTruncate.unwrap())(file, size) };
    if code == SQLITE_OK {
        record(Event::Truncate { file: name, size: size as usize });
    }
    code
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    if SYNCS_FAIL.load(Ordering::SeqCst) {
        return SQLITE_IOERR_FSYNC;
    }
    record(Event::Sync { file: of(file).0 });
    SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    let removed = files().remove(&(file as usize));
    unsafe {
        let original = removed.unwrap().original;
        (*file).pMethods = original;
        (original.xClose.unwrap())(file)
    }
}
