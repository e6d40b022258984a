package redisstore

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-sessions/holdfast/driver"
)

// parseInfo reads the lines "name:value" of INFO.
func parseInfo(info string) map[string]string {
	facts := make(map[string]string)
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			facts[name] = value
		}
	}
	return facts
}

// describe says what the servers are, as they said when the store was opened. One that does not tell (no right to
// INFO) may evict, for all we know.
func describe(c config, servers []map[string]string) driver.Description {
	d := driver.Description{Name: "redis", Shared: true}
	aof, replicas := len(servers) > 0, -1
	for _, facts := range servers {
		aof = aof && facts["aof_enabled"] == "1"
		if n, err := strconv.Atoi(facts["connected_slaves"]); err == nil && (replicas < 0 || n < replicas) {
			replicas = n
		}
		policy, known := facts["maxmemory_policy"]
		d.Evicts = d.Evicts || !known || policy != "noeviction" && facts["maxmemory"] != "0"
	}
	d.Durable = "the last snapshot, if Redis takes any (setting save)"
	if aof {
		d.Durable = "all that Redis has written to its append-only file, all but the last second by default"
	}
	switch c.kind {
	case sentinelled:
		d.Name = "redis-sentinel"
		d.Durable += fmt.Sprintf("; and what replicas (%s) have when Sentinel promotes one", count(replicas))
	case clustered:
		d.Name = "redis-cluster"
		d.Durable += fmt.Sprintf("; and what replicas (%s for each of %d primaries) have when one takes over", count(replicas), len(servers))
	}
	if c.wait > 0 {
		d.Durable += fmt.Sprintf("; %d of them have each write before it is confirmed", c.wait)
	}
	return d
}

func count(replicas int) string {
	if replicas < 0 {
		return "how many is not known"
	}
	return strconv.Itoa(replicas)
}
