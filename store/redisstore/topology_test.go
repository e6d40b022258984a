package redisstore_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/holdfast-sessions/holdfast/internal/testserver"
	"github.com/holdfast-sessions/holdfast/store/redisstore"
)

// The rights of docs/stores/redis.md that Sentinel, Cluster and options take beside the others.
const (
	clusterRights  = " +cluster|slots +cluster|shards +cluster|nodes"
	waitRight      = " +wait"
	cacheRight     = " +client|tracking"
	sentinelRights = " &+switch-master +sentinel|master +sentinel|get-master-addr-by-name +ping +subscribe"
)

// Those rights are enough, and one that is missing is named.
func TestACLOfTopologies(t *testing.T) {
	t.Parallel()
	least := "app on >s3cret resetkeys ~holdfast:* resetchannels -@all" + needed + " +scan +mget +ping"
	password := filepath.Join(t.TempDir(), "password")
	mustWriteFile(t, password, "s3cret")
	single := testserver.Redis(t, testserver.RedisOptions{
		Users: []string{least + waitRight + cacheRight}, Config: []string{"repl-diskless-sync-delay 0"},
	})
	testserver.RedisReplica(t, single)
	cluster := testserver.RedisCluster(t, testserver.RedisOptions{Users: []string{least + waitRight + clusterRights}})
	sentinel := testserver.RedisSentinel(t, testserver.SentinelOptions{
		Redis: testserver.RedisOptions{Users: []string{least}},
		Users: []string{"watcher on >s3cret resetchannels -@all" + sentinelRights},
	})
	sentinelURL := "redis-sentinel://app:s3cret@" + sentinel.Addrs() + "?master=main&sentinel_user=watcher&sentinel_password_file=" + password
	for _, tt := range []struct {
		url     string
		servers []*testserver.Server
		rights  string
	}{
		{"redis://app:s3cret@" + single.Addr + "?wait=1&cache=1MB", []*testserver.Server{single}, waitRight + cacheRight},
		// CLUSTER SHARDS is asked of Redis 8 only.
		{"redis-cluster://app:s3cret@" + cluster.Nodes[1].Addr + "?wait=1", cluster.Nodes, waitRight + strings.Replace(clusterRights, " +cluster|shards", "", 1)},
		{sentinelURL, nil, ""},
	} {
		s := mustOpen(t, tt.url)
		rec := record("ada", "a", "1")
		for i := range 20 { // some on each node
			mustSave(t, s, idOf(i), rec, 0)
			wantStored(t, s, idOf(i), rec)
		}
		changes := []driver.Change{set("a", "2")}
		if _, err := s.Merge(t.Context(), idOf(1), rec, after(rec, changes...), changes); err != nil {
			t.Errorf("%s: Merge = %v", tt.url, err)
		}
		if err := s.Delete(t.Context(), idOf(1)); err != nil {
			t.Errorf("%s: Delete = %v", tt.url, err)
		}
		listed := 0
		for _, err := range s.List(t.Context()) {
			if err != nil {
				t.Errorf("%s: List = %v", tt.url, err)
			}
			listed++
		}
		if listed != 19 {
			t.Errorf("%s: %d records listed, want 19", tt.url, listed)
		}
		for _, right := range strings.Fields(tt.rights) {
			for _, srv := range tt.servers {
				srv.MustCommand("ACL", "SETUSER", "app", "-"+right[1:])
			}
			_, err := redisstore.Open(t.Context(), tt.url)
			wantOpenError(t, tt.url+" without "+right, err, "may not run "+strings.ToUpper(strings.ReplaceAll(right[1:], "client|", "CLIENT ")))
			wantOpenError(t, tt.url+" without "+right, err, right)
			for _, srv := range tt.servers {
				srv.MustCommand("ACL", "SETUSER", "app", right)
			}
		}
	}

	watcher := func(rule string) {
		for _, s := range sentinel.Sentinels {
			s.MustCommand("ACL", "SETUSER", "watcher", rule)
		}
	}
	for _, right := range []string{"sentinel|master", "sentinel|get-master-addr-by-name"} {
		watcher("-" + right)
		_, err := redisstore.Open(t.Context(), sentinelURL)
		wantOpenError(t, "without "+right, err, "may not ask them; grant it with ACL SETUSER NAME"+sentinelRights)
		watcher("+" + right)
	}
	watcher("-subscribe") // it does without
	mustOpen(t, sentinelURL)
	watcher("resetpass")
	watcher(">other")
	_, err := redisstore.Open(t.Context(), sentinelURL)
	wantOpenError(t, "wrong password of the Sentinels", err, "add sentinel_password_file=")
}

// What cannot be opened is explained.
func TestOpenErrorsOfTopologies(t *testing.T) {
	t.Parallel()
	sentinel, cluster, single := testserver.RedisSentinel(t), testserver.RedisCluster(t), testserver.Redis(t)
	nobody := testserver.FreeAddr(t)
	tests := []struct {
		name, url, want string
		unavailable     bool
	}{
		{"no Sentinel", "redis-sentinel://" + nobody + "?master=main", "no Sentinel names the primary: dial tcp " + nobody, true},
		{"another name", "redis-sentinel://" + sentinel.Addrs() + "?master=other", `they watch none of the name "other"; give master=`, false},
		{"no Sentinel but a server", "redis-sentinel://" + single.Addr + "?master=main", "what answers there is no Sentinel", false},
		{"a Sentinel as a server", "redis://" + sentinel.Sentinels[0].Addr, "write redis-sentinel://", false},
		{"a Sentinel as a cluster", "redis-cluster://" + sentinel.Sentinels[0].Addr, "not part of a Redis Cluster", false},
		{"a node as a server", "redis://" + cluster.Nodes[0].Addr, "write redis-cluster://", false},
		{"a server as a cluster", "redis-cluster://" + single.Addr, "not part of a Redis Cluster; write redis://", false},
		{"no node", "redis-cluster://" + nobody, "connection refused", true},
		{"one node of three", "redis-cluster://" + nobody + "," + cluster.Nodes[4].Addr, "", false},
		{"one Sentinel of two", "redis-sentinel://" + nobody + "," + sentinel.Sentinels[2].Addr + "?master=main", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == "" {
				mustOpen(t, tt.url)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err := redisstore.Open(ctx, tt.url)
			wantOpenError(t, tt.url, err, tt.want)
			if errors.Is(err, driver.ErrUnavailable) != tt.unavailable {
				t.Errorf("Open(%s) = %v, matches ErrUnavailable: %v, want %v", tt.url, err, !tt.unavailable, tt.unavailable)
			}
		})
	}

	// One that hangs: its context ends Open.
	for _, srv := range append(cluster.Nodes, sentinel.Sentinels...) {
		srv.Freeze()
	}
	for _, url := range []string{"redis-cluster://" + cluster.Addrs(), "redis-sentinel://" + sentinel.Addrs() + "?master=main"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		start := time.Now()
		_, err := redisstore.Open(ctx, url)
		cancel()
		if d := time.Since(start); d > 200*time.Millisecond+late {
			t.Errorf("Open(%s) took %v, its deadline was 200ms", url, d)
		}
		if !errors.Is(err, driver.ErrUnavailable) {
			t.Errorf("Open(%s) = %v, want ErrUnavailable", url, err)
		}
	}
}

// TLS is for everybody who is talked to.
func TestTLSOfTopologies(t *testing.T) {
	t.Parallel()
	primary := testserver.Redis(t, testserver.RedisOptions{TLS: true})
	watcher := testserver.Sentinel(t, "main", primary)
	node := testserver.Redis(t, testserver.RedisOptions{TLS: true, Config: []string{"cluster-enabled yes", "tls-cluster yes", "cluster-port " + mustFreePort(t)}})
	node.MustCommand("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
	files := func(srv *testserver.Server) string {
		return "ca_file=" + srv.TLS.CAFile + "&cert_file=" + srv.TLS.CertFile + "&key_file=" + srv.TLS.KeyFile
	}
	eventually(t, "a cluster of one", func() error {
		if info := node.MustCommand("CLUSTER", "INFO"); !strings.Contains(info, "cluster_state:ok") {
			return errors.New(info)
		}
		return nil
	})
	for _, url := range []string{
		"rediss-sentinel://" + watcher.Addr + "?master=main&" + files(primary),
		"rediss-cluster://" + node.Addr + "?" + files(node),
	} {
		s := mustOpen(t, url)
		rec := record("ada")
		mustSave(t, s, idOf(1), rec, 0)
		wantStored(t, s, idOf(1), rec)
		for item, err := range s.List(t.Context()) {
			if err != nil || item.ID != idOf(1) {
				t.Errorf("%s: List yields %s, %v", url, item.ID, err)
			}
		}
	}
	_, err := redisstore.Open(t.Context(), "rediss-cluster://"+node.Addr+"?"+files(primary))
	wantOpenError(t, "another CA", err, "name its CA with ca_file=")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := redisstore.Open(ctx, "redis-cluster://"+node.Addr); !errors.Is(err, driver.ErrUnavailable) {
		t.Errorf("without TLS: Open = %v, want ErrUnavailable", err)
	}
}

func mustFreePort(t *testing.T) string {
	t.Helper()
	_, port, _ := net.SplitHostPort(testserver.FreeAddr(t))
	return port
}

func TestDescribeTopologies(t *testing.T) {
	t.Parallel()
	sentinel := testserver.RedisSentinel(t)
	d := mustOpen(t, "redis-sentinel://"+sentinel.Addrs()+"?wait=1&master=main").Describe()
	if d.Name != "redis-sentinel" || d.Evicts || !strings.Contains(d.Durable, "what replicas (1) have when Sentinel promotes one; 1 of them have each write") {
		t.Errorf("Describe = %+v", d)
	}
	single := testserver.Redis(t)
	s := mustOpen(t, "redis://"+single.Addr+"/3")
	mustSave(t, s, idOf(1), record("ada"), 0)
	wantStat(t, s, "keys", "keys=1,", 1)
	cluster := testserver.RedisCluster(t, testserver.RedisOptions{Config: []string{"proto-max-bulk-len 2mb"}})
	cluster.Nodes[1].MustCommand("CONFIG", "SET", "proto-max-bulk-len", "1048576")
	cluster.Nodes[2].MustCommand("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
	s = mustOpen(t, "redis-cluster://"+cluster.Nodes[0].Addr)
	wantStat(t, s, "replicas of 127.0.0.1:", "1", 3)
	d = s.Describe()
	if d.Name != "redis-cluster" || !d.Evicts || d.MaxBytes != 1<<20 || !strings.Contains(d.Durable, "replicas (1 for each of 3 primaries)") {
		t.Errorf("Describe = %+v, want the least of what the nodes say", d)
	}
}

// wantStat wants n facts whose names and values begin so.
func wantStat(t *testing.T, s *redisstore.Store, name, value string, n int) {
	t.Helper()
	stat, err := s.Stat(t.Context())
	if err != nil || stat.Bytes <= 0 || stat.Records >= 0 {
		t.Errorf("Stat = %+v, %v", stat, err)
	}
	found := 0
	for _, f := range stat.Facts {
		if strings.HasPrefix(f.Name, name) && strings.HasPrefix(f.Value, value) {
			found++
		}
	}
	if found != n {
		t.Errorf("Stat has %d facts %q that begin with %q, want %d: %+v", found, name, value, n, stat.Facts)
	}
}
