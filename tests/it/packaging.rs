//! What users install. `tests/packages.sh` builds and tries it; here is what would make that fail, or
//! have what is written about it be wrong.

use std::fs;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn toml(path: &str) -> toml::Table {
    read(path)
        .parse()
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_wheel_has_the_binary_and_its_version() {
    let wheel = toml("pyproject.toml");
    assert_eq!(wheel["tool"]["maturin"]["bindings"].as_str(), Some("bin"));
    let project = &wheel["project"];
    assert_eq!(project["name"].as_str(), Some("nightshift-batch"));
    // Of Cargo.toml: there is one version.
    assert_eq!(project["dynamic"].as_array().map(Vec::len), Some(1));
    let package = &toml("Cargo.toml")["package"];
    for key in ["description", "license"] {
        assert_eq!(project[key], package[key], "{key}");
    }
}

#[test]
fn the_debian_package_has_files_that_are_there() {
    let package = &toml("Cargo.toml")["package"]["metadata"]["deb"];
    let assets = package["assets"].as_array().expect("is a list");
    for asset in assets {
        let source = asset[0].as_str().expect("is text");
        let source = source.trim_end_matches("/*.md");
        let is_built = source.starts_with("target/");
        assert!(is_built || root().join(source).exists(), "{source}");
    }
    let keys = assets
        .iter()
        .find(|asset| asset[0].as_str() == Some("packaging/deb/environment"));
    let mode = keys.and_then(|asset| asset[2].as_str());
    assert_eq!(mode, Some("640"), "keys are for root alone");
    // Whoever upgrades keeps what they wrote.
    let kept = package["conf-files"].to_string();
    for file in ["nightshift.toml", "environment"] {
        assert!(kept.contains(&format!("/etc/nightshift/{file}")), "{kept}");
    }
}

#[test]
fn the_unit_in_the_documents_is_the_one_in_the_package() {
    let unit = read("packaging/deb/nightshift.service");
    let documented = unit.replace("/usr/bin/nightshift", "/usr/local/bin/nightshift");
    let page = read("docs/deploying.md");
    assert!(page.contains(documented.trim_end()), "{documented}");
}

#[test]
fn a_release_has_what_is_tried_for_both_architectures() {
    let release = read(".github/workflows/release.yml");
    for words in [
        "packaging/build.sh ${{ matrix.target }}",
        "tests/packages.sh dist",
        "target: x86_64-unknown-linux-gnu",
        "target: aarch64-unknown-linux-gnu",
    ] {
        assert!(release.contains(words), "{words}");
    }
    for script in [
        "packaging/build.sh",
        "tests/packages.sh",
        "packaging/deb/postinst",
    ] {
        let mode = fs::metadata(root().join(script))
            .expect("is there")
            .permissions();
        let mode = std::os::unix::fs::PermissionsExt::mode(&mode);
        assert_eq!(mode & 0o111, 0o111, "{script} can be run");
    }
    let readme = read("README.md");
    for way in [
        "pip install nightshift-batch",
        "uvx",
        ".tar.gz",
        ".deb",
        "There is no release yet",
    ] {
        assert!(readme.contains(way), "the README does not say {way}");
    }
}
