//! The files of `manifests/schema/` are what the types say today. To write them anew:
//! `REEVE_UPDATE=1 cargo nextest run -p schemas published`.

use std::path::PathBuf;

#[test]
fn published_schemas_are_current() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/schema");
    let update = std::env::var_os("REEVE_UPDATE").is_some();
    for (name, text) in schemas::kinds::published() {
        let path = folder.join(&name);
        if update {
            std::fs::create_dir_all(&folder).expect("the folder can be made");
            std::fs::write(&path, &text).expect("the schema can be written");
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            stored == text,
            "manifests/schema/{name} is not what the types say; write it anew with\n    \
             REEVE_UPDATE=1 cargo nextest run -p schemas published"
        );
    }
    let known: Vec<String> = schemas::kinds::published().into_iter().map(|(name, _)| name).collect();
    for entry in std::fs::read_dir(&folder).expect("the folder is there") {
        let name = entry
            .expect("the folder can be read")
            .file_name()
            .to_string_lossy()
            .into_owned();
        assert!(
            known.contains(&name),
            "manifests/schema/{name} belongs to no kind: remove it"
        );
    }
}
