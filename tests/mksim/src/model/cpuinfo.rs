//! What `/proc/cpuinfo` shows: the CPUs that the host runs on, under their logical and physical numbers.

use super::machine::Machine;

impl Machine {
    /// A `/proc/cpuinfo` look-alike. `template` is a real one: what is not about the number of a CPU is of its first.
    ///
    /// CPUs of the pool are not in it, as on the real host: they are of no use to whoever looks for CPUs to run on.
    pub fn cpuinfo(&self, template: &str) -> String {
        let first = template.split("\n\n").next().unwrap_or_default();
        let mut text = String::new();
        for logical in 0..self.config.cpus {
            let physical = self.config.physical_cpu(logical);
            if !self.host.cpus.contains(&physical) {
                continue;
            }
            let mut named = false;
            for line in first.lines() {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                let number = match name.trim() {
                    "processor" => Some(u64::from(logical)),
                    "physical id" => Some(0),
                    "core id" => Some(physical / 2),
                    "siblings" => Some(u64::from(self.config.cpus)),
                    "cpu cores" => Some(u64::from(self.config.cpus.div_ceil(2))),
                    "apicid" | "initial apicid" => Some(physical),
                    _ => None,
                };
                named |= name.trim() == "apicid";
                let value = number.map_or_else(|| value.trim().to_owned(), |number| number.to_string());
                text.push_str(&format!("{name}: {value}\n"));
            }
            if !named {
                text.push_str(&format!("apicid\t\t: {physical}\n"));
            }
            text.push('\n');
        }
        text
    }
}
