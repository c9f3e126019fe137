//! COPY, ADD and WORKDIR on small trees: what is in the layer afterwards.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_cache::{
    ContentDigest, Context, Kind, LayerId, LayerWriter, Layers, Metadata, ScanFilter, Store, Time,
    Tree, Verdict, View,
};
use kiln_executor::chmod::Chmod;
use kiln_executor::copy::{
    CopyError, CopySpec, PathMatch, Source, SourcePath, Unpack, copy, select,
};
use kiln_executor::mkdir::{MkdirSpec, mkdir};

struct Everything;

impl ScanFilter for Everything {
    fn verdict(&self, _: &Path, _: bool) -> Verdict {
        Verdict::Include
    }
}

/// Files that begin with `archive` are archives of one file, `unpacked`.
struct Fake;

impl Unpack for Fake {
    fn is_archive(&self, file: &mut File) -> io::Result<bool> {
        let mut head = String::new();
        file.take(7).read_to_string(&mut head)?;
        Ok(head == "archive")
    }

    fn unpack(
        &self,
        _: File,
        below: &dyn View,
        dest: &Path,
        writer: &LayerWriter,
        owner: Option<(u32, u32)>,
    ) -> io::Result<()> {
        let path = dest.join("unpacked");
        writer.parents(&path, below)?;
        let (uid, gid) = owner.unwrap_or((0, 0));
        writer.file(
            &path,
            &Metadata { mode: 0o600, uid, gid, ..Metadata::default() },
            &mut &b"u"[..],
        )?;
        Ok(())
    }
}

struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    base: Vec<LayerId>,
}

fn owned(mode: u32, uid: u32, gid: u32) -> Metadata {
    Metadata { mode, uid, gid, mtime: Time { secs: 1000, nanos: 0 }, ..Metadata::default() }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("store")).expect("opened");
        fs::create_dir(dir.path().join("context")).expect("made");
        Self { dir, store, base: Vec::new() }
    }

    /// Puts a file into the context; the mode is that of the file.
    fn file(&self, path: &str, data: &str, mode: u32) -> &Self {
        let path = self.context_path(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(&path, data).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
        self
    }

    fn dir(&self, path: &str, mode: u32) -> &Self {
        let path = self.context_path(path);
        fs::create_dir_all(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.context_path(path)).expect("linked");
        self
    }

    fn context_path(&self, path: &str) -> PathBuf {
        self.dir.path().join("context").join(path)
    }

    fn context(&self) -> Context {
        let path = self.dir.path().join("context");
        Context::open(&self.store, &path, "context", Arc::new(Everything)).expect("opened")
    }

    /// Puts a layer on the base.
    fn base(&mut self, fill: impl FnOnce(&LayerWriter) -> io::Result<()>) -> &mut Self {
        let (_, id) = self.layer(fill);
        self.base.push(id);
        self
    }

    fn layer<E: std::fmt::Debug>(
        &self,
        fill: impl FnOnce(&LayerWriter) -> Result<(), E>,
    ) -> (Arc<Tree>, LayerId) {
        let draft = self.store.draft().expect("begun");
        let writer = draft.writer();
        fill(&writer).expect("written");
        let id = LayerId::random();
        (draft.publish(id.clone(), writer.finish().expect("finished")).expect("published"), id)
    }

    fn view(&self) -> Layers {
        Layers::open(&self.store, &self.base).expect("stored")
    }

    /// Copies, and says what is in the layer.
    fn copy(&self, spec: &CopySpec, paths: &[SourcePath]) -> Result<String, CopyError> {
        let context = self.context();
        self.copy_from(spec, &context, paths)
    }

    fn copy_from(
        &self,
        spec: &CopySpec,
        view: &dyn View,
        paths: &[SourcePath],
    ) -> Result<String, CopyError> {
        let sources = paths.iter().map(|path| self.source(spec, view, path.clone()));
        let sources = sources.collect::<Result<Vec<_>, CopyError>>()?;
        let below = Layers::open(&self.store, if spec.link { &[] } else { &self.base });
        let draft = self.store.draft().expect("begun");
        let writer = draft.writer();
        copy(spec, &sources, &below.expect("stored"), &writer, &Fake)?;
        Ok(show(&writer.finish().expect("finished")))
    }

    fn source<'a>(
        &self,
        spec: &CopySpec,
        view: &'a dyn View,
        path: SourcePath,
    ) -> Result<(Source<'a>, kiln_executor::copy::Selection), CopyError> {
        let shown = match &path {
            SourcePath::Plain(path) => path.display().to_string(),
            other => format!("{other:?}"),
        };
        let source = Source::View { view, path, shown, unpack: true };
        let selection = select(spec, &source)?;
        Ok((source, selection))
    }

    fn digest(&self, spec: &CopySpec, path: SourcePath) -> ContentDigest {
        let context = self.context();
        let (_, selection) = self.source(spec, &context, path).expect("selected");
        selection.digest().expect("read")
    }
}

/// One line an entry: path, mode, owner, and what it is.
fn show(tree: &Tree) -> String {
    let lines = tree.walk().map(|(path, entry)| {
        let Metadata { mode, uid, gid, .. } = entry.metadata;
        let kind = match &entry.kind {
            Kind::Directory { .. } => "dir".to_owned(),
            Kind::File { size, .. } if entry.link_group != 0 => format!("file {size} linked"),
            Kind::File { size, .. } => format!("file {size}"),
            Kind::Symlink { target } => format!("-> {}", target.display()),
            other => format!("{other:?}"),
        };
        format!("/{} {mode:o} {uid}:{gid} {kind}", path.display())
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn to(dest: &str) -> CopySpec {
    CopySpec { dest: dest.to_owned(), ..CopySpec::default() }
}

fn plain(path: &str) -> SourcePath {
    SourcePath::Plain(path.into())
}

fn matcher(test: impl Fn(&str) -> bool + Send + Sync + 'static) -> PathMatch {
    Arc::new(test)
}

fn lines(lines: &[&str]) -> String {
    lines.join("\n")
}

fn small() -> Bench {
    let bench = Bench::new();
    bench.file("a", "a\n", 0o644).file("b", "bb\n", 0o600);
    bench.file("dir/one", "1", 0o640).file("dir/sub/two", "22", 0o755);
    bench.dir("dir/sub", 0o711).dir("dir", 0o700);
    bench
}

#[test]
fn follows_the_destination_rules() {
    let mut bench = small();
    bench.base(|base| base.directory(Path::new("home"), &owned(0o750, 5, 6)));
    let check = |dest: &str, paths: &[&str], expect: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| plain(path)).collect();
        let found = bench.copy(&to(dest), &paths).expect("copied");
        assert_eq!(found, lines(expect), "{dest}");
    };
    check("/new", &["a"], &["/new 644 0:0 file 2"]);
    check("/new/", &["a"], &["/new 755 0:0 dir", "/new/a 644 0:0 file 2"]);
    check("/new/.", &["a"], &["/new 755 0:0 dir", "/new/a 644 0:0 file 2"]);
    check("/home", &["a"], &["/home 750 5:6 dir", "/home/a 644 0:0 file 2"]);
    check("/p/q", &["b"], &["/p 755 0:0 dir", "/p/q 600 0:0 file 3"]);
    check("/last", &["a", "b"], &["/last 600 0:0 file 3"]);
    check("/", &["a"], &["/a 644 0:0 file 2"]);
    let two = "/home/sub 711 0:0 dir";
    let one = "/home/one 640 0:0 file 1";
    let expect = ["/home 750 5:6 dir", one, two, "/home/sub/two 755 0:0 file 2"];
    check("/home", &["dir"], &expect);
    let expect = [
        "/n 755 0:0 dir",
        "/n/m 755 0:0 dir",
        "/n/m/one 640 0:0 file 1",
        "/n/m/sub 711 0:0 dir",
        "/n/m/sub/two 755 0:0 file 2",
    ];
    check("/n/m", &["dir"], &expect);
    check("/n/m/", &["dir/"], &expect);
}

#[test]
fn sets_owner_and_mode() {
    let bench = small();
    bench.link("dir/link", "one");
    let spec = CopySpec { owner: Some((3, 4)), chmod: Some(Chmod::Octal(0o750)), ..to("/p/q") };
    let expect = [
        "/p 750 3:4 dir",
        "/p/q 750 3:4 dir",
        "/p/q/link 777 3:4 -> one",
        "/p/q/one 750 3:4 file 1",
        "/p/q/sub 750 3:4 dir",
        "/p/q/sub/two 750 3:4 file 2",
    ];
    assert_eq!(bench.copy(&spec, &[plain("dir")]).expect("copied"), lines(&expect));
    let spec = CopySpec { chmod: Some(Chmod::Symbolic("go+rX,u+s".to_owned())), ..to("/p/q") };
    let expect = [
        "/p 755 0:0 dir",
        "/p/q 755 0:0 dir",
        "/p/q/link 777 0:0 -> one",
        "/p/q/one 4644 0:0 file 1",
        "/p/q/sub 4755 0:0 dir",
        "/p/q/sub/two 4755 0:0 file 2",
    ];
    assert_eq!(bench.copy(&spec, &[plain("dir")]).expect("copied"), lines(&expect));
}

#[test]
fn keeps_times() {
    let bench = small();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_234_567);
    for path in ["dir/one", "dir"] {
        let file = File::open(bench.context_path(path)).expect("opened");
        file.set_modified(time).expect("set");
    }
    let context = bench.context();
    let spec = CopySpec { time: Some(Time { secs: 7, nanos: 0 }), ..to("/p/q") };
    let source = bench.source(&spec, &context, plain("dir")).expect("selected");
    let inline = Source::Inline { name: "i", data: b"x" };
    let selection = select(&spec, &inline).expect("selected");
    let below = bench.view();
    let (tree, _) =
        bench.layer(|writer| copy(&spec, &[source, (inline, selection)], &below, writer, &Fake));
    let secs = |path: &str| tree.lookup(Path::new(path)).expect("there").metadata.mtime.secs;
    assert_eq!(
        [secs("p"), secs("p/q"), secs("p/q/one"), secs("p/q/i")],
        [7, 1_234_567, 1_234_567, 7]
    );
}

#[test]
fn resolves_links_inside_the_root() {
    let mut bench = small();
    bench.link("to-file", "b").link("to-dir", "/dir").link("out", "../../../../a");
    bench.base(|base| {
        base.directory(Path::new("real"), &owned(0o755, 0, 0))?;
        base.file(Path::new("real/old"), &owned(0o600, 0, 0), &mut &b"old"[..])?;
        base.symlink(Path::new("abs"), &owned(0, 0, 0), Path::new("/real"))?;
        base.symlink(Path::new("up"), &owned(0, 0, 0), Path::new("../../new"))?;
        base.symlink(Path::new("file"), &owned(0, 0, 0), Path::new("real/old"))?;
        base.symlink(Path::new("real/a"), &owned(0, 0, 0), Path::new("old"))
    });
    let check = |spec: &CopySpec, path: &str, expect: &[&str]| {
        let found = bench.copy(spec, &[plain(path)]).expect("copied");
        assert_eq!(found, lines(expect), "{path} to {}", spec.dest);
    };
    let real = "/real 755 0:0 dir";
    check(&to("/abs/x"), "a", &[real, "/real/x 644 0:0 file 2"]);
    check(&to("/abs"), "a", &[real, "/real/a 644 0:0 file 2"]);
    check(&to("/up/"), "a", &["/new 755 0:0 dir", "/new/a 644 0:0 file 2"]);
    check(&to("/file"), "a", &[real, "/real/old 644 0:0 file 2"]);
    let link = CopySpec { link: true, ..to("/abs/x") };
    check(&link, "a", &["/abs 755 0:0 dir", "/abs/x 644 0:0 file 2"]);
    check(&to("/d/"), "to-file", &["/d 755 0:0 dir", "/d/to-file 600 0:0 file 3"]);
    check(&to("/d/"), "out", &["/d 755 0:0 dir", "/d/out 644 0:0 file 2"]);
    check(&to("/d"), "to-dir/one", &["/d 640 0:0 file 1"]);
}

#[test]
fn says_what_cannot_be_copied() {
    let mut bench = small();
    bench.base(|base| {
        base.directory(Path::new("t/one"), &owned(0o755, 0, 0))?;
        base.directory(Path::new("d/a"), &owned(0o755, 0, 0))?;
        base.file(Path::new("s/sub"), &owned(0o644, 0, 0), &mut io::empty())?;
        base.file(Path::new("file"), &owned(0o644, 0, 0), &mut io::empty()).map(|_| ())
    });
    let check = |dest: &str, path: &str, expect: &str, help: &str| {
        let error = bench.copy(&to(dest), &[plain(path)]).unwrap_err();
        assert_eq!(error.to_string(), expect);
        let found = error.help().unwrap_or_default();
        assert!(found.contains(help), "{found}");
    };
    check("/t", "dir", "cannot replace to directory /t/one with file", "`/t/one`");
    check("/d", "a", "cannot replace to directory /d/a with file", "`/d/a`");
    check("/s", "dir", "cannot copy to non-directory: /s/sub is not a directory", "`/s/sub`");
    check("/file", "dir", "cannot copy to non-directory: /file is not a directory", "`/file`");
    check("/file/", "a", "cannot copy to non-directory: /file is not a directory", "`/file`");
    check("/file/x", "a", "cannot copy to non-directory: /file is not a directory", "`/file`");
    check("/x", "dir/sub/tow", "\"/dir/sub/tow\": not found", "`dir/sub/two`");
    check("/x", "Dir/one", "\"/Dir/one\": not found", "`dir/one`");
    check("/x", "a/b", "\"/a/b\": not found", "context");
    check("/x", "elsewhere", "\"/elsewhere\": not found", "context");
}

#[test]
fn matches_patterns() {
    let bench = small();
    bench.link("alias", "dir").file("deep/er/a", "x", 0o644);
    let pattern = |prefix: &str, levels, test: fn(&str) -> bool| SourcePath::Pattern {
        prefix: prefix.into(),
        matches: matcher(test),
        levels,
    };
    let check = |path: SourcePath, expect: &[&str]| {
        let found = bench.copy(&to("/d/"), &[path]).expect("copied");
        assert_eq!(found, lines(expect));
    };
    check(pattern("", Some(1), |_| false), &[]);
    check(
        pattern("", None, |path| path.ends_with('a')),
        &["/d 755 0:0 dir", "/d/a 644 0:0 file 1"],
    );
    check(
        pattern("", Some(1), |path| path.ends_with('a')),
        &["/d 755 0:0 dir", "/d/a 644 0:0 file 2"],
    );
    check(
        pattern("dir", Some(2), |path| path == "dir/one"),
        &["/d 755 0:0 dir", "/d/one 640 0:0 file 1"],
    );
    // A link that is matched gives what it leads to.
    let expect = ["/d 755 0:0 dir", "/d/one 640 0:0 file 1", "/d/sub 711 0:0 dir"];
    let expect = [&expect[..], &["/d/sub/two 755 0:0 file 2"]].concat();
    check(pattern("", Some(1), |path| path == "alias"), &expect);
    let star = pattern("", Some(1), |path| path == "a");
    assert_eq!(bench.digest(&to("/"), star), bench.digest(&to("/"), plain("a")));
}

#[test]
fn leaves_out_what_is_excluded() {
    let bench = small();
    bench.file("dir/sub/keep", "k", 0o644).file("dir/.x/y", "k", 0o644);
    let check = |exclude: PathMatch, expect: &[&str]| {
        let spec = CopySpec { exclude: Some(exclude), ..to("/d") };
        let found = bench.copy(&spec, &[plain("dir")]).expect("copied");
        assert_eq!(found, lines(expect));
    };
    let dir = "/d 755 0:0 dir";
    check(matcher(|path| !path.starts_with("one")), &[dir, "/d/one 640 0:0 file 1"]);
    check(
        matcher(|path| path != "sub/keep"),
        &[dir, "/d/sub 711 0:0 dir", "/d/sub/keep 644 0:0 file 1"],
    );
    check(matcher(|_| true), &[dir]);
    let digest = |name: &'static str| {
        let exclude = Some(matcher(move |path: &str| path.starts_with(name)));
        bench.digest(&CopySpec { exclude, ..to("/d") }, plain("dir"))
    };
    let (without, with) = (digest("sub"), digest("nothing"));
    bench.file("dir/sub/two", "changed", 0o755);
    assert_eq!(digest("sub"), without);
    assert_ne!(digest("nothing"), with);
}

#[test]
fn keeps_parents() {
    let mut bench = small();
    bench.base(|base| base.directory(Path::new("p/dir"), &owned(0o777, 9, 9)));
    let parents = |pivot: &str, wanted: &'static str| SourcePath::Parents {
        pivot: pivot.into(),
        pattern: matcher(move |path| path == wanted),
        literal: Some(wanted.into()),
        prefix: Path::new(wanted).into(),
    };
    let check = |path: SourcePath, dest: &str, expect: &[&str]| {
        let spec = CopySpec { parents: true, ..to(dest) };
        assert_eq!(bench.copy(&spec, &[path]).expect("copied"), lines(expect));
    };
    let two = "sub/two 755 0:0 file 2";
    let expect = ["/p 755 0:0 dir", "/p/dir 700 0:0 dir", "/p/dir/sub 711 0:0 dir"];
    let file = format!("/p/dir/{two}");
    check(parents("", "dir/sub/two"), "/p/", &[&expect[..], &[&file]].concat());
    check(parents("", "dir/sub"), "/p", &[&expect[..], &[&file]].concat());
    let expect = ["/n 755 0:0 dir", "/n/sub 711 0:0 dir", &format!("/n/{two}")];
    check(parents("dir", "sub/two"), "/n", &expect);
    let error = bench.copy(&to("/n"), &[parents("dir", "sub/tow")]).unwrap_err();
    assert_eq!(error.help().as_deref(), Some("did you mean `dir/sub/two`?"));
}

#[test]
fn keeps_links_attributes_and_special_files_of_stages() {
    let mut bench = Bench::new();
    bench.base(|base| {
        let mut metadata = owned(0o4755, 33, 34);
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        metadata.xattrs.insert(b"security.capability".to_vec(), capability);
        base.file(Path::new("s/x"), &metadata, &mut &b"xyz"[..])?;
        base.hardlink(Path::new("s/y"), Path::new("s/x"))?;
        base.special(Path::new("s/pipe"), &owned(0o622, 1, 1), &Kind::Fifo)
    });
    let (view, spec) = (bench.view(), to("/d"));
    let source = bench.source(&spec, &view, plain("s")).expect("selected");
    let below = Layers::open(&bench.store, &[]).expect("opened");
    let (tree, _) = bench.layer(|writer| copy(&spec, &[source], &below, writer, &Fake));
    let expect = [
        "/d 755 0:0 dir",
        "/d/pipe 622 1:1 Fifo",
        "/d/x 4755 33:34 file 3 linked",
        "/d/y 4755 33:34 file 3 linked",
    ];
    assert_eq!(show(&tree), lines(&expect));
    let entry = tree.lookup(Path::new("d/x")).expect("there");
    assert!(entry.metadata.xattrs.contains_key(&b"security.capability"[..]));
}

#[test]
fn unpacks_archives() {
    let bench = Bench::new();
    bench.file("arc", "archive!", 0o644).file("no", "plain", 0o644).dir("dir", 0o755);
    bench.file("dir/arc", "archive!", 0o644);
    let spec = CopySpec { chmod: Some(Chmod::Octal(0o700)), owner: Some((1, 2)), ..to("/x/y") };
    let found = bench.copy(&spec, &[plain("arc")]).expect("copied");
    let expect = ["/x 755 1:2 dir", "/x/y 755 1:2 dir", "/x/y/unpacked 600 1:2 file 1"];
    assert_eq!(found, lines(&expect));
    let found = bench.copy(&to("/x"), &[plain("no")]).expect("copied");
    assert_eq!(found, "/x 644 0:0 file 5");
    let found = bench.copy(&to("/x"), &[plain("dir")]).expect("copied");
    assert_eq!(found, lines(&["/x 755 0:0 dir", "/x/arc 644 0:0 file 8"]));
}

#[test]
fn writes_nothing_that_the_base_has() {
    let mut bench = small();
    let context = bench.context();
    let spec = to("/d");
    let source = bench.source(&spec, &context, plain("dir")).expect("selected");
    let below = bench.view();
    let (_, id) = bench.layer(|writer| copy(&spec, &[source], &below, writer, &Fake));
    bench.base.push(id);
    assert_eq!(bench.copy(&spec, &[plain("dir")]).expect("copied"), "");
    bench.file("dir/sub/two", "new", 0o755);
    let expect = ["/d 755 0:0 dir", "/d/sub 711 0:0 dir", "/d/sub/two 755 0:0 file 3"];
    assert_eq!(bench.copy(&spec, &[plain("dir")]).expect("copied"), lines(&expect));
}

#[test]
fn makes_directories() {
    let mut bench = Bench::new();
    bench.base(|base| {
        base.directory(Path::new("opt"), &owned(0o711, 7, 7))?;
        base.file(Path::new("file"), &owned(0o644, 0, 0), &mut io::empty())?;
        base.symlink(Path::new("link"), &owned(0, 0, 0), Path::new("/opt"))
    });
    let make = |path: &str| {
        let mtime = Some(Time { secs: 5, nanos: 0 });
        let spec = MkdirSpec { path: path.to_owned(), owner: (1, 2), mode: 0o755, mtime };
        let draft = bench.store.draft().expect("begun");
        let writer = draft.writer();
        mkdir(&spec, &bench.view(), &writer).map(|()| show(&writer.finish().expect("finished")))
    };
    assert_eq!(make("/").expect("made"), "");
    assert_eq!(make("/link").expect("made"), "");
    let expect = ["/opt 711 7:7 dir", "/opt/a 755 1:2 dir", "/opt/a/b 755 1:2 dir"];
    assert_eq!(make("/link/a/b").expect("made"), lines(&expect));
    let error = make("/file/x").unwrap_err();
    assert_eq!(error.to_string(), "cannot copy to non-directory: /file is not a directory");
}

#[test]
fn notices_that_a_file_changed() {
    let bench = small();
    let (context, spec) = (bench.context(), to("/x"));
    let source = bench.source(&spec, &context, plain("a")).expect("selected");
    bench.file("a", "c\n", 0o644);
    let draft = bench.store.draft().expect("begun");
    let error = copy(&spec, &[source], &bench.view(), &draft.writer(), &Fake).unwrap_err();
    assert!(matches!(error, CopyError::Changed { .. }), "{error}");
}
