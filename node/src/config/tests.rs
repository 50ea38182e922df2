//! Settings from files, the environment and flags: what they give, and what is wrong with them.

use std::io::Write;

use super::*;

fn load(
    toml: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    Config::load(Some(file.path()), own(environment), &own(flags))
}

#[test]
fn the_example_has_every_setting_with_its_default() {
    let example = include_str!("../../starling.example.toml");
    assert_eq!(load(example, &[], &[]).unwrap(), Config::default());
    for line in Config::default().to_toml().lines().filter(|line| !line.is_empty()) {
        assert!(example.lines().any(|example| example == line), "{line} is missing");
    }
    // What has no default is a setting all the same.
    let is_setting = |line: &&str| line.starts_with("# ") && line.contains(" = ");
    for line in example.lines().filter(is_setting) {
        let (name, _) = line[2..].split_once(" = ").unwrap();
        let section = example[..example.find(line).unwrap()].rsplit("\n[").next().unwrap();
        let section = section.split(']').next().unwrap();
        let uncommented = format!("[{section}]\n{}\n", &line[2..]);
        let error = load(&uncommented, &[], &[]).err().map(|error| error.to_string());
        let unknown = error.filter(|error| error.contains("unknown field"));
        assert_eq!(unknown, None, "{section}.{name}");
    }
}

#[test]
fn later_sources_win() {
    let toml = "[limits]\nconnections_max = 1\nsubscriptions_max = 1\nclient_queue_bytes = 100000";
    let environment = [
        ("STARLING_LIMITS__CONNECTIONS_MAX", "2"),
        ("STARLING_LIMITS__SUBSCRIPTIONS_MAX", "2"),
        ("STARLING_CONNECT", "is no setting"),
        ("PATH", "is none of ours"),
    ];
    let config = load(toml, &environment, &[("limits.connections_max", "3")]).unwrap();
    assert_eq!(config.limits.connections_max, 3);
    assert_eq!(config.limits.subscriptions_max, 2);
    assert_eq!(config.limits.client_queue_bytes, 100_000);
    assert_eq!(config.limits.payload_size_max, LimitsConfig::default().payload_size_max);
}

#[test]
fn what_is_printed_can_be_read() {
    let members = "1@127.0.0.1:7401@east@3,2@127.0.0.1:7402";
    let flags = [("node.id", "2"), ("cluster.members", members), ("log.format", "json")];
    let config = load("", &[], &flags).unwrap();
    assert_eq!(config.cluster.members.0[0].zone, "east");
    assert_eq!(config.cluster.members.0[0].weight, 3);
    assert_eq!(load(&config.to_toml(), &[], &[]).unwrap(), config);
    assert_eq!(load(&Config::default().to_toml(), &[], &[]).unwrap(), Config::default());
}

#[test]
fn members_come_in_three_forms() {
    let expected = vec!["7@10.0.0.1:7400@a".parse::<Member>().unwrap()];
    for list in [
        "[{ id = 7, address = \"10.0.0.1:7400\", zone = \"a\" }]",
        "[\"7@10.0.0.1:7400@a\"]",
        "\"7@10.0.0.1:7400@a\"",
    ] {
        let config =
            load(&format!("[node]\nid = 7\n[cluster]\nmembers = {list}"), &[], &[]).unwrap();
        assert_eq!(config.cluster.members.0, expected, "{list}");
    }
}

#[test]
fn what_is_no_setting_is_refused_wherever_it_stands() {
    for (toml, environment, flag) in [
        ("[storage]\nmemtable = 1", None, None),
        ("[sorage]\n", None, None),
        ("[cluster]\nmembers = [{ id = 1, address = \"127.0.0.1:1\", wieght = 2 }]", None, None),
        ("", Some(("STARLING_STORAGE__MEMTABLE", "1")), None),
        ("", None, Some(("storage.memtable", "1"))),
    ] {
        let error = load(toml, environment.as_slice(), flag.as_slice()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("unknown field"), "{text}");
    }
}

#[test]
fn every_bound_is_told() {
    for (setting, value, expected) in [
        ("node.id", "0", "node.id is 0"),
        ("cluster.name", "", "cluster.name length is 0"),
        ("cluster.partitions", "1000", "a power of two"),
        ("cluster.members", "1@127.0.0.1:7401", "--id"),
        ("cluster.members", "1@127.0.0.1:0", "port is 0"),
        ("cluster.members", "1@127.0.0.1:1,1@127.0.0.1:2", "names node 1 twice"),
        ("cluster.members", "1@127.0.0.1:1,2@127.0.0.1:1", "address 127.0.0.1:1 twice"),
        ("cluster.members", "nonsense", "is not a member"),
        ("storage.interval_ms", "0", "storage.interval_ms is 0"),
        ("storage.memtable_bytes", "-1", "storage.memtable_bytes"),
        ("storage.memtable_bytes", "17179869185", "to 17179869184"),
        ("limits.payload_size_max", "99999999999", "from 1 to 67108864"),
        ("clock.bound_window_ms", "501", "from 1 to 500"),
        ("gossip.probe_timeout_ms", "501", "from 5 to 500"),
        ("log.level", "loud=very", "log.level"),
        ("node.listen", "localhost", "node.listen"),
        ("node.listen", "0.0.0.0:7400", "--advertise"),
    ] {
        let text = load("", &[], &[(setting, value)]).unwrap_err().to_string();
        assert!(text.contains(expected), "{setting} = {value}: {text}");
    }
    let flags = [("node.id", "3"), ("cluster.members", "1@127.0.0.1:7401")];
    assert!(matches!(load("", &[], &flags), Err(ConfigError::NotMember(NodeId(3)))));
    let flags = [
        ("node.id", "1"),
        ("node.advertise", "127.0.0.1:7402"),
        ("cluster.members", "1@127.0.0.1:7401"),
    ];
    assert!(matches!(load("", &[], &flags), Err(ConfigError::AdvertiseDiffers { .. })));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Some(Path::new("/nowhere/starling.toml")), [], &[]).unwrap_err();
    assert!(error.to_string().contains("/nowhere/starling.toml"));
}
