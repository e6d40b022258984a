package testserver

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
)

// slots is how many a Redis Cluster has.
const slots = 16384

// RedisClusterSet is a Redis Cluster.
type RedisClusterSet struct {
	// Nodes are three primaries and then, in the same order, a replica of each, as they were at the start.
	Nodes []*Server

	t testing.TB
}

// RedisCluster starts three primaries with a replica each. A node that two primaries have not heard from for 1.5 s is
// replaced by its replica.
func RedisCluster(t testing.TB, o ...RedisOptions) *RedisClusterSet {
	t.Helper()
	opt := first(o)
	opt.Config = append([]string{
		"cluster-enabled yes", "cluster-node-timeout 1500", "cluster-announce-ip 127.0.0.1",
		"cluster-replica-validity-factor 0", "cluster-allow-replica-migration no",
		"repl-diskless-sync yes", "repl-diskless-sync-delay 0", "repl-ping-replica-period 1",
	}, opt.Config...)
	set := &RedisClusterSet{t: t}
	const primaries = 3
	for range 2 * primaries {
		s, bus := redisNode(t, opt)
		set.Nodes = append(set.Nodes, s)
		s.MustCommand("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(len(set.Nodes)))
		if len(set.Nodes) > 1 {
			set.Nodes[0].MustCommand("CLUSTER", "MEET", "127.0.0.1", s.Port(), bus)
		}
	}
	for i := range primaries {
		set.Nodes[i].MustCommand("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(slots*i/primaries), strconv.Itoa(slots*(i+1)/primaries-1))
	}
	for _, s := range set.Nodes {
		waitFor(t, "the nodes know each other", func() error {
			nodes, err := s.Command("CLUSTER", "NODES")
			if n := strings.Count(nodes, " connected"); err == nil && n != len(set.Nodes) || strings.Contains(nodes, "handshake") {
				err = fmt.Errorf("%d nodes are connected", n)
			}
			return err
		})
	}
	for i := range primaries {
		id := set.ID(set.Nodes[i])
		set.Nodes[primaries+i].MustCommand("CLUSTER", "REPLICATE", id)
	}
	set.Settle()
	return set
}

// redisNode starts one node and returns its bus port too. That is 10,000 above the other by default, which may be more
// than there are.
func redisNode(t testing.TB, o RedisOptions) (s *Server, bus string) {
	t.Helper()
	buses := make(map[string]string) // by the address; start tries another of both when one was taken
	s = start(t, spec{
		program: "redis-server",
		debian:  "redis-server",
		args: func(s *Server) []string {
			if buses[s.Addr] == "" {
				_, buses[s.Addr], _ = net.SplitHostPort(FreeAddr(t))
			}
			own := o
			own.Config = append([]string{"cluster-port " + buses[s.Addr]}, o.Config...)
			return []string{s.mustWrite("redis.conf", redisConfig(s, own))}
		},
		ready: redisReady,
	}, nil)
	return s, buses[s.Addr]
}

// ID returns the name that the cluster has for a node.
func (set *RedisClusterSet) ID(s *Server) string {
	set.t.Helper()
	return strings.TrimSpace(s.MustCommand("CLUSTER", "MYID"))
}

// Settle waits until every node that runs says that all is well: all slots are served, and every replica that runs
// copies from a primary.
func (set *RedisClusterSet) Settle() {
	set.t.Helper()
	for _, s := range set.Nodes {
		if s.proc == nil {
			continue
		}
		waitFor(set.t, "the cluster is complete", func() error {
			info, err := s.Command("CLUSTER", "INFO")
			if err != nil {
				return err
			}
			replication, err := s.Command("INFO", "replication")
			if err != nil {
				return err
			}
			nodes, err := s.Command("CLUSTER", "NODES")
			if err != nil {
				return err
			}
			primaries := 0
			for _, n := range parseNodes(nodes) {
				if strings.Contains(n.flags, "master") && n.slots != "" && !strings.Contains(n.flags, "fail") {
					primaries++
				}
			}
			state, ok, link := infoField(info, "cluster_state"), infoField(info, "cluster_slots_ok"), infoField(replication, "master_link_status")
			if state != "ok" || ok != strconv.Itoa(slots) || link != "" && link != "up" || primaries < 3 {
				return fmt.Errorf("%s: state %s, %s slots, %d primaries, link %s", s.Addr, state, ok, primaries, link)
			}
			return nil
		})
	}
}

// Addrs returns where the nodes listen, as a URL has them.
func (set *RedisClusterSet) Addrs() string {
	addrs := make([]string, len(set.Nodes))
	for i, s := range set.Nodes {
		addrs[i] = s.Addr
	}
	return strings.Join(addrs, ",")
}

// Primaries returns the nodes that serve slots now, in the view of the first one that runs.
func (set *RedisClusterSet) Primaries() []*Server {
	set.t.Helper()
	var primaries []*Server
	for _, s := range set.Nodes {
		if s.proc == nil {
			continue
		}
		for _, n := range parseNodes(s.MustCommand("CLUSTER", "NODES")) {
			for _, node := range set.Nodes {
				if n.addr == node.Addr && strings.Contains(n.flags, "master") && n.slots != "" && !strings.Contains(n.flags, "fail") {
					primaries = append(primaries, node)
				}
			}
		}
		break
	}
	return primaries
}

// Owner returns the primary that serves a slot, by its own word. On a busy machine one may just be taking it over.
func (set *RedisClusterSet) Owner(slot int) (owner *Server) {
	set.t.Helper()
	waitFor(set.t, "a node says that the slot is its own", func() error {
		for _, s := range set.Primaries() {
			nodes, err := s.Command("CLUSTER", "NODES")
			if err != nil {
				return err
			}
			for _, n := range parseNodes(nodes) {
				if n.addr == s.Addr && strings.Contains(n.flags, "myself") && n.has(slot) {
					owner = s
					return nil
				}
			}
		}
		return fmt.Errorf("nobody serves slot %d", slot)
	})
	return owner
}

// MoveSlot moves a slot and its keys from one primary to another, as redis-cli --cluster reshard does, while both serve
// it.
func (set *RedisClusterSet) MoveSlot(slot int, from, to *Server) {
	set.t.Helper()
	n, fromID, toID := strconv.Itoa(slot), set.ID(from), set.ID(to)
	to.MustCommand("CLUSTER", "SETSLOT", n, "IMPORTING", fromID)
	from.MustCommand("CLUSTER", "SETSLOT", n, "MIGRATING", toID)
	for {
		keys := from.MustCommand("CLUSTER", "GETKEYSINSLOT", n, "10")
		if keys == "" {
			break
		}
		from.MustCommand(append([]string{"MIGRATE", "127.0.0.1", to.Port(), "", "0", "5000", "KEYS"}, strings.Split(keys, "\n")...)...)
	}
	to.MustCommand("CLUSTER", "SETSLOT", n, "NODE", toID)
	from.MustCommand("CLUSTER", "SETSLOT", n, "NODE", toID)
	for _, s := range set.Primaries() {
		if s != to && s != from {
			s.MustCommand("CLUSTER", "SETSLOT", n, "NODE", toID)
		}
	}
	// Two nodes that take slots over at once may make their claims at one epoch, and then either may be believed.
	waitFor(set.t, "the nodes agree who has the slot", func() error {
		epochs := make(map[string]bool)
		for _, s := range set.Primaries() {
			info, err := s.Command("CLUSTER", "INFO")
			if err != nil {
				return err
			}
			epochs[infoField(info, "cluster_current_epoch")] = true
		}
		if len(epochs) > 1 {
			return fmt.Errorf("epochs %v", epochs)
		}
		return nil
	})
}

type clusterNode struct {
	addr, flags, slots string
}

// parseNodes reads CLUSTER NODES: id addr:port@bus flags primary ping pong epoch link slot...
func parseNodes(reply string) []clusterNode {
	var nodes []clusterNode
	for line := range strings.Lines(reply) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		addr, _, _ := strings.Cut(f[1], "@")
		nodes = append(nodes, clusterNode{addr: addr, flags: f[2], slots: strings.Join(f[8:], " ")})
	}
	return nodes
}

func (n clusterNode) has(slot int) bool {
	for _, r := range strings.Fields(n.slots) {
		if strings.HasPrefix(r, "[") { // on its way
			continue
		}
		low, high, ok := strings.Cut(r, "-")
		if !ok {
			high = low
		}
		l, _ := strconv.Atoi(low)
		h, _ := strconv.Atoi(high)
		if l <= slot && slot <= h {
			return true
		}
	}
	return false
}
