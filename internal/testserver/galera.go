package testserver

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// GaleraProvider is the library that makes a node of a MariaDB server.
const GaleraProvider = "/usr/lib/galera/libgalera_smm.so"

// GaleraCluster is three MariaDB servers, each of which takes writes.
type GaleraCluster struct {
	Nodes []*Server

	t testing.TB
}

// Galera starts a cluster. Its nodes give up one that does not answer after two seconds, where Galera's default is five.
// A node that was killed is restarted with Restart: it copies another's data (rsync) and joins again.
func Galera(t testing.TB) *GaleraCluster {
	t.Helper()
	message := fmt.Sprintf("NOT RUN: %s needs %s and rsync (Debian: apt-get install galera-4 rsync)", t.Name(), GaleraProvider)
	if _, err := os.Stat(GaleraProvider); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	g := &GaleraCluster{t: t}
	const nodes = 3
	var group []string
	for range nodes {
		group = append(group, FreeAddr(t))
	}
	for i := range nodes {
		// If root runs the copy's receiver, that turns into a user who may not write to the directory.
		o := MariaDBOptions{user: "mysql", Config: []string{
			"wsrep-on = ON", "wsrep-provider = " + GaleraProvider, "wsrep-cluster-name = test",
			"wsrep-cluster-address = gcomm://" + strings.Join(group, ","),
			"wsrep-node-address = " + group[i], fmt.Sprintf("wsrep-node-name = n%d", i),
			"wsrep-sst-method = rsync", "wsrep-sst-receive-address = " + FreeAddr(t),
			"wsrep-provider-options = gmcast.listen_addr=tcp://" + group[i] + ";ist.recv_addr=" + FreeAddr(t) + ";gcache.size=16M;" +
				"evs.keepalive_period=PT0.5S;evs.inactive_check_period=PT0.5S;evs.suspect_timeout=PT2S;evs.inactive_timeout=PT4S",
			"binlog-format = ROW", "innodb-autoinc-lock-mode = 2", "innodb-buffer-pool-size = 32M",
		}}
		if o.joins = i > 0; !o.joins {
			o.firstArgs = []string{"--wsrep-new-cluster"}
		}
		g.Nodes = append(g.Nodes, MariaDB(t, o))
		g.Synced(i + 1)
	}
	return g
}

// Synced waits until every node that runs is one of n that have the same data.
func (g *GaleraCluster) Synced(n int) {
	g.t.Helper()
	want := fmt.Sprint(n, " Synced ON")
	for _, s := range g.Nodes {
		if s.proc == nil {
			continue
		}
		mustEventually(g.t, "the node is in sync", func() error {
			var got []string
			for _, name := range []string{"wsrep_cluster_size", "wsrep_local_state_comment", "wsrep_ready"} {
				status, err := s.mariadb("SHOW STATUS LIKE '" + name + "'")
				if err != nil {
					return err
				}
				got = append(got, column(status, "Value"))
			}
			if got := strings.Join(got, " "); got != want {
				return fmt.Errorf("%s, want %s\n%s", got, want, s.Log())
			}
			return nil
		})
	}
}
