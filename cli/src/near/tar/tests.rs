use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// An entry as another program may write it.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut out = block(name.as_bytes(), 0o4755, 0, kind, data.len() as u64, link.as_bytes()).to_vec();
    out.extend(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

fn unpack(bytes: &[u8], dir: &Path, top: &str, piece: usize) -> io::Result<Unpacker> {
    let mut unpacker = Unpacker::new(dir, top.as_ref())?;
    let mut reader = Reader::default();
    for piece in bytes.chunks(piece) {
        reader.push(piece);
        while let Some(part) = reader.next()? {
            unpacker.take(part)?;
        }
    }
    if reader.is_whole() && unpacker.is_whole() {
        Ok(unpacker)
    } else {
        Err(wrong("it ended early"))
    }
}

#[test]
fn a_tree_arrives_as_it_was_whatever_its_names_and_bytes() {
    let from = tempfile::tempdir().unwrap();
    let deep = from.path().join("a b/ä\"q").join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let bytes: Vec<u8> = (0..200_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 9) as u8)
        .collect();
    std::fs::write(deep.join("data"), &bytes).unwrap();
    std::fs::write(from.path().join("empty"), b"").unwrap();
    std::fs::set_permissions(from.path().join("empty"), std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("/nowhere/".to_owned() + &"z".repeat(150), from.path().join("link")).unwrap();
    let mut archive = Vec::new();
    let sums = pack(from.path(), Path::new("tree"), &mut |piece| {
        archive.extend(piece);
        true
    });
    assert_eq!(sums.unwrap(), (3, 200_000));
    for piece in [1, 511, 70_000] {
        let to = tempfile::tempdir().unwrap();
        let unpacked = unpack(&archive, to.path(), "called", piece).unwrap();
        assert_eq!((unpacked.files, unpacked.bytes), (3, 200_000));
        assert!(unpacked.passed_over.is_empty(), "{:?}", unpacked.passed_over);
        let root = to.path().join("called");
        let arrived = deep.strip_prefix(from.path()).unwrap();
        assert_eq!(std::fs::read(root.join(arrived).join("data")).unwrap(), bytes);
        assert_eq!(
            std::fs::metadata(root.join("empty")).unwrap().permissions().mode() & 0o7777,
            0o640
        );
        let link = std::fs::read_link(root.join("link")).unwrap();
        assert!(link.starts_with("/nowhere"));
    }
}

#[test]
fn nothing_is_written_outside_the_target() {
    let all = tempfile::tempdir().unwrap();
    let (inside, outside) = (all.path().join("in"), all.path().join("out"));
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("own"), b"mine").unwrap();
    let out = outside.display().to_string();
    let own = format!("{out}/own");
    let cases: Vec<Vec<Vec<u8>>> = vec![
        vec![entry("../out/x", b'0', "", b"bad")],
        vec![entry("t/../../out/x", b'0', "", b"bad")],
        vec![entry(&format!("{out}/x"), b'0', "", b"bad")],
        // Through a link that the archive brings along, as a directory and as a file.
        vec![entry("t/l", b'2', &out, b""), entry("t/l/x", b'0', "", b"bad")],
        vec![entry("t/l", b'2', &own, b""), entry("t/l", b'0', "", b"bad")],
        vec![entry("t", b'2', &out, b""), entry("t/x", b'0', "", b"bad")],
        vec![
            entry("t/l", b'2', &out, b""),
            entry("t/l", b'5', "", b""),
            entry("t/l/x", b'0', "", b"bad"),
        ],
        // To what is not in the archive.
        vec![entry("t/h", b'1', &own, b"")],
        vec![entry("t/h", b'1', "../out/own", b"")],
        vec![
            entry("t/l", b'2', &out, b""),
            entry("t/h", b'1', "t/l/own", b""),
            entry("t/h", b'0', "", b"bad"),
        ],
        // Devices and pipes.
        vec![
            entry("t/d", b'3', "", b""),
            entry("t/c", b'4', "", b""),
            entry("t/p", b'6', "", b""),
        ],
    ];
    for (at, case) in cases.into_iter().enumerate() {
        let target = inside.join(at.to_string());
        std::fs::create_dir_all(&target).unwrap();
        let unpacked = unpack(&case.concat(), &target, "t", 512);
        let left: Vec<_> = std::fs::read_dir(&outside)
            .unwrap()
            .flatten()
            .map(|one| one.file_name())
            .collect();
        assert_eq!(left, ["own"], "case {at}");
        assert_eq!(std::fs::read(outside.join("own")).unwrap(), b"mine", "case {at}");
        if let Ok(unpacked) = unpacked {
            let link_only = at == 4;
            assert_eq!(
                unpacked.passed_over.is_empty(),
                link_only,
                "case {at}: {:?}",
                unpacked.passed_over
            );
        }
    }
    let mode = {
        unpack(&entry("t", b'0', "", b"x"), &inside, "s", 512).unwrap();
        std::fs::metadata(inside.join("s")).unwrap().permissions().mode()
    };
    assert_eq!(mode & 0o7777, 0o755, "nothing is set-uid");
}

#[test]
fn long_names_of_both_kinds_are_understood() {
    let name = format!("t/{}", "n".repeat(180));
    let gnu = [
        entry("././@LongLink", b'L', "", format!("{name}\0").as_bytes()),
        entry("t/cut", b'0', "", b"1"),
    ]
    .concat();
    let record = format!("path={name}\n");
    let record = format!("{} {record}", record.len() + 4);
    let pax = [entry("x", b'x', "", record.as_bytes()), entry("t/cut", b'0', "", b"1")].concat();
    for archive in [gnu, pax] {
        let to = tempfile::tempdir().unwrap();
        unpack(&archive, to.path(), "t", 100).unwrap();
        assert!(to.path().join(&name).is_file());
    }
}

#[test]
fn damaged_archives_are_errors_and_nothing_worse() {
    let whole = [entry("t/a", b'0', "", &[7; 3_000]), vec![0; 1024]].concat();
    let to = tempfile::tempdir().unwrap();
    assert!(unpack(&whole[..1_700], to.path(), "t", 512).is_err());
    let mut bad = whole.clone();
    bad[0] ^= 1;
    assert!(unpack(&bad, to.path(), "t", 512).is_err());
    for record in [
        "0 path=x\n",
        "999 path=x\n",
        "x",
        "5 =\n",
        "12345678901234 path=x\n",
        "7 path\n",
    ] {
        let bytes = [entry("x", b'x', "", record.as_bytes()), entry("t/b", b'0', "", b"1")].concat();
        let _ = unpack(&bytes, to.path(), "t", 64);
    }
    // A size beyond any file, in both ways of writing it.
    for first in [0x80, 0xff] {
        let mut block = block(b"t/huge", 0o644, 0, b'0', 0, b"");
        block[124..128].copy_from_slice(&[first, 0, 0, 0]);
        block[128..136].copy_from_slice(&[0xff; 8]);
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut reader = Reader::default();
        reader.push(&block);
        assert!(reader.next().is_err());
    }
    // Any byte changed anywhere.
    let mut seed: u64 = 3;
    for _ in 0..2_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut bytes = whole.clone();
        let at = usize::try_from(seed >> 33).unwrap() % 600;
        bytes[at] = (seed >> 17) as u8;
        let sum: u32 = bytes[..512]
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let _ = unpack(&bytes, to.path(), "t", 700);
    }
}
