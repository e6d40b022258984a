package testserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// SentinelSet is a Redis primary with replicas, watched by three Sentinels.
type SentinelSet struct {
	// Name is what the Sentinels call the set.
	Name string
	// Servers are the data servers. The first was the primary at the start.
	Servers []*Server
	// Sentinels promote a replica when two of them have not heard from the primary for 1.5 s.
	Sentinels []*Server

	t testing.TB
}

// SentinelOptions say how [RedisSentinel] configures the Sentinels.
type SentinelOptions struct {
	// Replicas is how many there are. 0: one.
	Replicas int
	// Redis configures the data servers. They and the Sentinels talk to each other as the default user, without a
	// password; a test that wants one makes another user.
	Redis RedisOptions
	// Users are ACL users of the Sentinels.
	Users []string
}

// RedisSentinel starts a primary, its replicas and three Sentinels. It returns when all know each other.
func RedisSentinel(t testing.TB, o ...SentinelOptions) *SentinelSet {
	t.Helper()
	opt := first(o)
	set := &SentinelSet{Name: "main", t: t}
	data := opt.Redis
	data.Config = append([]string{"repl-diskless-sync yes", "repl-diskless-sync-delay 0", "repl-ping-replica-period 1"}, data.Config...)
	primary := Redis(t, data)
	set.Servers = []*Server{primary}
	replicas := max(1, opt.Replicas)
	for range replicas {
		set.Servers = append(set.Servers, RedisReplica(t, primary, data))
	}
	for range 3 {
		set.Sentinels = append(set.Sentinels, Sentinel(t, set.Name, primary, opt.Users...))
	}
	set.Settle()
	return set
}

// RedisReplica starts a redis-server that copies primary, and returns when it has.
func RedisReplica(t testing.TB, primary *Server, o ...RedisOptions) *Server {
	t.Helper()
	opt := first(o)
	opt.Config = append([]string{"replicaof 127.0.0.1 " + primary.Port()}, opt.Config...)
	s := Redis(t, opt)
	waitFor(t, "the replica has copied its primary", func() error {
		info, err := s.Command("INFO", "replication")
		if err != nil {
			return err
		}
		if state := infoField(info, "master_link_status"); state != "up" {
			return fmt.Errorf("link %s", state)
		}
		return nil
	})
	return s
}

// Sentinel starts one Sentinel, which calls a primary by the name, with ACL users. It speaks TLS if the primary does.
func Sentinel(t testing.TB, name string, primary *Server, users ...string) *Server {
	t.Helper()
	return start(t, spec{
		program: "redis-server",
		debian:  "redis-server",
		args: func(s *Server) []string {
			// A Sentinel keeps what it has learnt in its configuration, which is written for its first start only.
			path := filepath.Join(s.Dir, "sentinel-"+s.Port()+".conf")
			if _, err := os.Stat(path); err != nil {
				conf := []string{
					"bind 127.0.0.1", "dir " + s.Dir, "daemonize no",
					"sentinel monitor " + name + " 127.0.0.1 " + primary.Port() + " 2",
					"sentinel down-after-milliseconds " + name + " 1500",
					"sentinel failover-timeout " + name + " 10000",
				}
				if s.TLS == nil {
					conf = append(conf, "port "+s.Port())
				} else {
					conf = append(conf, append(s.TLS.redisConfig(s.Port()), "tls-replication yes")...)
				}
				for _, u := range users {
					conf = append(conf, "user "+u)
				}
				path = s.mustWrite(filepath.Base(path), lines(conf...))
			}
			return []string{path, "--sentinel"}
		},
		ready: redisReady,
	}, primary.TLS)
}

// Addrs returns where the Sentinels listen, as a URL has them.
func (set *SentinelSet) Addrs() string {
	addrs := make([]string, len(set.Sentinels))
	for i, s := range set.Sentinels {
		addrs[i] = s.Addr
	}
	return strings.Join(addrs, ",")
}

// Primary returns the server that the Sentinels which run name. It waits until they agree.
func (set *SentinelSet) Primary() *Server {
	set.t.Helper()
	var primary *Server
	waitFor(set.t, "the Sentinels name one primary", func() error {
		named := make(map[string]bool)
		for _, s := range set.Sentinels {
			if s.proc == nil {
				continue
			}
			reply, err := s.Command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", set.Name)
			if err != nil {
				return err
			}
			named[strings.Replace(reply, "\n", ":", 1)] = true
		}
		if len(named) != 1 {
			return fmt.Errorf("they name %v", named)
		}
		for _, s := range set.Servers {
			if named[s.Addr] {
				primary = s
				return nil
			}
		}
		return fmt.Errorf("they name %v, which is none of the servers", named)
	})
	return primary
}

// Settle waits until every Sentinel that runs knows every replica and the other Sentinels, and all other servers that run
// copy from the primary. A former primary that is back is made a replica after some ten seconds.
func (set *SentinelSet) Settle() {
	set.t.Helper()
	for _, s := range set.Sentinels {
		if s.proc == nil {
			continue
		}
		waitFor(set.t, "the Sentinels know everybody", func() error {
			reply, err := s.Command("SENTINEL", "MASTER", set.Name)
			if err != nil {
				return err
			}
			facts := pairs(reply)
			if facts["flags"] != "master" || facts["num-other-sentinels"] != strconv.Itoa(len(set.Sentinels)-1) ||
				facts["num-slaves"] != strconv.Itoa(len(set.Servers)-1) {
				return fmt.Errorf("flags %s, %s other Sentinels, %s replicas", facts["flags"], facts["num-other-sentinels"], facts["num-slaves"])
			}
			return nil
		})
	}
	primary := set.Primary()
	for _, s := range set.Servers {
		if s.proc == nil || s == primary {
			continue
		}
		waitFor(set.t, "the replicas copy from the primary", func() error {
			role, err := s.Command("ROLE")
			if want := "slave\n127.0.0.1\n" + primary.Port() + "\nconnected"; err == nil && !strings.HasPrefix(role, want) {
				err = fmt.Errorf("%s says that it is %q", s.Addr, role)
			}
			return err
		})
	}
}

// CatchUp waits until n replicas of a Redis server have all that it was given. (WAIT would not do: it is about the writes of its own
// connection, and each Command has a new one.)
func (s *Server) CatchUp(n int) {
	s.t.Helper()
	waitFor(s.t, "the replicas have everything", func() error {
		info, err := s.Command("INFO", "replication")
		if err != nil {
			return err
		}
		offset := ""
		for line := range strings.Lines(info) {
			if after, ok := strings.CutPrefix(strings.TrimSpace(line), "master_repl_offset:"); ok {
				offset = after
			}
		}
		if strings.Count(info, "offset="+offset+",") < n {
			return errors.New(info)
		}
		return nil
	})
}

// pairs reads names and values on lines in turn.
func pairs(reply string) map[string]string {
	m := make(map[string]string)
	parts := strings.Split(reply, "\n")
	for i := 0; i+1 < len(parts); i += 2 {
		m[parts[i]] = parts[i+1]
	}
	return m
}

// waitFor repeats f until it returns nil. Failovers take seconds, more on a busy machine.
func waitFor(t testing.TB, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("testserver: %s: not yet: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
