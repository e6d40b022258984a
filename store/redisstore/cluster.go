package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-sessions/holdfast/driver"
	"github.com/redis/rueidis"
)

const (
	slotCount = 16384
	// maxRedirects bounds how often one command follows nodes that send it elsewhere. Each did nothing.
	maxRedirects = 16
	// nodeTimeout is how long a node may take to say what it knows of the cluster, before another is asked.
	nodeTimeout = time.Second
)

// cluster is what rueidis does not do for a Redis Cluster: it sends each command to the node in charge of its key, and
// follows MOVED and ASK, which say that a node did nothing; but not for a write with its WAIT, which have to go to one
// node over one connection.
type cluster struct {
	client rueidis.Client
	// table has the address of the node in charge of each slot, or is nil: to be asked for.
	table atomic.Pointer[[slotCount]string]
}

// writeToNode is writeAndWait for the node in charge of a key.
func (s *Store) writeToNode(ctx context.Context, key string, command func(rueidis.Builder) rueidis.Completed) written {
	c := s.cluster
	ctx, cancel := context.WithTimeout(ctx, s.waitTimeout+replyTimeout)
	defer cancel()
	slot := slotOf(key)
	addr, ask := "", false
	for range maxRedirects {
		if addr == "" {
			table, err := c.slots(ctx)
			if err != nil {
				return written{err: err}
			}
			if addr = table[slot]; addr == "" {
				c.table.Store(nil)
				return written{err: driver.Unavailable(fmt.Errorf("redis: no node serves slot %d", slot))}
			}
		}
		node := c.client.Nodes()[addr]
		if node == nil {
			// rueidis does not know it yet. It follows a read there, which it repeats.
			_ = c.client.Do(ctx, c.client.B().Get().Key(key).Build().Pin()).Error() // the write says what is wrong
			if node = c.client.Nodes()[addr]; node == nil {
				c.table.Store(nil)
				return written{err: driver.Unavailable(fmt.Errorf("redis: node %s is not known yet", addr))}
			}
		}
		var w written
		if ask {
			w = s.writeAndWait(ctx, node, command, node.B().Asking().Build())
		} else {
			w = s.writeAndWait(ctx, node, command)
		}
		e, refused := rueidis.IsRedisErr(w.err)
		if !refused {
			if w.err != nil {
				c.table.Store(nil) // it may be dead, and another in its place
			}
			return w
		}
		if to, ok := e.IsMoved(); ok {
			c.table.Store(nil)
			addr, ask = to, false
		} else if to, ok := e.IsAsk(); ok {
			addr, ask = to, true
		} else {
			return w
		}
	}
	return written{err: driver.Unavailable(errors.New("redis: the nodes send each other the write; the cluster is not well (CLUSTER NODES)"))}
}

// slots returns which node is in charge of which slot.
func (c *cluster) slots(ctx context.Context) (*[slotCount]string, error) {
	if table := c.table.Load(); table != nil {
		return table, nil
	}
	err := errors.New("no node is known")
	for addr, node := range c.client.Nodes() {
		var reply []rueidis.RedisMessage
		ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
		reply, err = node.Do(ctx, node.B().ClusterSlots().Build().Pin()).ToArray()
		cancel()
		if err != nil || len(reply) == 0 {
			continue
		}
		table := new([slotCount]string)
		for _, r := range reply {
			readSlots(table, r, addr)
		}
		c.table.Store(table)
		return table, nil
	}
	return nil, err
}

// readSlots reads one element of CLUSTER SLOTS: [first, last, [host, port, ...] of the primary, ...].
func readSlots(table *[slotCount]string, reply rueidis.RedisMessage, askedAt string) {
	r, err := reply.ToArray()
	if err != nil || len(r) < 3 {
		return
	}
	first, err1 := r[0].AsInt64()
	last, err2 := r[1].AsInt64()
	primary, err3 := r[2].ToArray()
	if errors.Join(err1, err2, err3) != nil || len(primary) < 2 || first < 0 || last >= slotCount {
		return
	}
	host, _ := primary[0].ToString() // nil, or "", if it does not know its own address
	if host == "" {
		host, _, _ = net.SplitHostPort(askedAt)
	}
	port, err := primary[1].AsInt64()
	if err != nil || host == "?" {
		return
	}
	for i := first; i <= last; i++ {
		table[i] = net.JoinHostPort(host, strconv.FormatInt(port, 10))
	}
}

// primary is a node that serves slots.
type primary struct {
	addr string
	node rueidis.Client
	// state is what it says of itself: its number, the age of its claim, and its slots, those that move too.
	state string
}

// moving says that slots are on their way to or from it.
func (p primary) moving() bool { return strings.Contains(p.state, "[") }

// primaries asks every node for itself, as only that knows which of its slots are on the move. It fails unless all
// slots are served.
func (c *cluster) primaries(ctx context.Context) ([]primary, error) {
	var all []primary
	served, last := 0, error(nil)
	nodes := c.client.Nodes()
	for _, addr := range slices.Sorted(maps.Keys(nodes)) {
		node := nodes[addr]
		ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
		reply, err := node.Do(ctx, node.B().ClusterNodes().Build().Pin()).ToString()
		cancel()
		if err != nil { // a replica is not missed, and a primary is by its slots
			last = err
			continue
		}
		if state, slots := ownState(reply); slots > 0 {
			all = append(all, primary{addr, node, state})
			served += slots
		}
	}
	if served < slotCount {
		return nil, driver.Unavailable(fmt.Errorf("redis: only %d of %d slots are served (%w)", served, slotCount,
			cmp.Or(last, errors.New("CLUSTER NODES says by whom"))))
	}
	return all, nil
}

// allPrimaries returns the addresses of the primaries, also of those without slots, as one of the nodes knows them.
func (c *cluster) allPrimaries(ctx context.Context) ([]string, error) {
	err := errors.New("no node is known")
	nodes := c.client.Nodes()
	for addr, node := range nodes {
		var reply string
		ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
		reply, err = node.Do(ctx, node.B().ClusterNodes().Build().Pin()).ToString()
		cancel()
		if err == nil {
			return namedPrimaries(reply, addr, func(addr string) bool { return nodes[addr] != nil }), nil
		}
	}
	return nil, err
}

// namedPrimaries returns the addresses of the primaries in a reply to CLUSTER NODES, but for those that failed and were
// replaced. An address is "host:port@bus", and since Redis 7 ",name" may follow; known says which one is in use.
func namedPrimaries(reply, askedAt string, known func(addr string) bool) []string {
	var addrs []string
	for line := range strings.Lines(reply) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		flags := strings.Split(f[2], ",")
		if !slices.Contains(flags, "master") || slices.Contains(flags, "noaddr") || slices.Contains(flags, "handshake") ||
			slices.Contains(flags, "fail") && len(f) == 8 {
			continue
		}
		addr, names, _ := strings.Cut(f[1], ",")
		addr, _, _ = strings.Cut(addr, "@")
		colon := strings.LastIndexByte(addr, ':')
		if colon < 0 {
			continue
		}
		host, port := addr[:colon], addr[colon+1:]
		if host == "" { // it does not know its own address
			host, _, _ = net.SplitHostPort(askedAt)
		}
		addr = net.JoinHostPort(host, port)
		if name, _, _ := strings.Cut(names, ","); name != "" && known(net.JoinHostPort(name, port)) {
			addr = net.JoinHostPort(name, port)
		}
		addrs = append(addrs, addr)
	}
	return addrs
}

// ownState returns what the reply to CLUSTER NODES says of the node that gave it, if it is a primary, and how many
// slots it has. A line is: ID address flags primary ping pong epoch link slots...
func ownState(reply string) (state string, slots int) {
	for line := range strings.Lines(reply) {
		f := strings.Fields(line)
		if len(f) < 9 || !strings.Contains(f[2], "myself") || !strings.Contains(f[2], "master") {
			continue
		}
		for _, r := range f[8:] {
			if strings.HasPrefix(r, "[") {
				continue
			}
			low, high, ok := strings.Cut(r, "-")
			if !ok {
				high = low
			}
			l, err1 := strconv.Atoi(low)
			h, err2 := strconv.Atoi(high)
			if err1 == nil && err2 == nil {
				slots += h - l + 1
			}
		}
		return f[0] + " " + f[6] + " " + strings.Join(f[8:], " "), slots
	}
	return "", 0
}

// slotOf returns the slot of a key without braces: CRC-16/XMODEM, by the specification of Redis Cluster.
func slotOf(key string) int {
	crc := uint16(0)
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc % slotCount)
}
