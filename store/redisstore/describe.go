package redisstore

import (
	"cmp"
	"context"
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
	d := driver.Description{Name: "redis", Shared: true, WatchDelay: watchDelay}
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

// Stat says what the servers say of themselves, by INFO. How many of the keys are the store's own they cannot tell
// without being searched: see List.
func (s *Store) Stat(ctx context.Context) (driver.Stat, error) {
	stat := driver.Stat{Records: -1, Expired: -1}
	servers, err := s.servers(ctx)
	if err != nil {
		return driver.Stat{}, s.mapError(err)
	}
	for _, server := range servers {
		info, err := s.info(ctx, server.node)
		if err != nil {
			return driver.Stat{}, s.mapError(err)
		}
		facts := parseInfo(info)
		if n, err := strconv.ParseInt(facts["used_memory"], 10, 64); err == nil {
			stat.Bytes += n
		}
		where := ""
		if s.cluster != nil {
			where = " of " + server.addr
		}
		for _, f := range []struct{ name, value string }{
			{"version", facts["redis_version"]},
			{"role", facts["role"]},
			{"replicas", facts["connected_slaves"]},
			{"keys", cmp.Or(facts[fmt.Sprint("db", s.db)], "keys=0")},
			{"memory limit", facts["maxmemory_human"] + ", " + facts["maxmemory_policy"]},
			{"evictions", facts["evicted_keys"]},
			{"append-only file", facts["aof_enabled"]},
			{"last snapshot", facts["rdb_last_bgsave_status"]},
		} {
			stat.Facts = append(stat.Facts, driver.Fact{Name: f.name + where, Value: f.value})
		}
	}
	return stat, nil
}
