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

#[test]
fn every_example_is_admitted() {
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "yaml" || extension == "json")
            {
                let text = std::fs::read_to_string(&path).expect("the example can be read");
                if let Err(problems) = schemas::admit(&text, Some(&path.display().to_string())) {
                    panic!("{}", problems.render(schemas::Look::default()));
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "there are examples");
}
