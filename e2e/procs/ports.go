package procs

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// leastPort is the first port that is given to a process.
const leastPort = 10240

// ports that were given to processes and may not be in use at the moment, because
// their process is yet to be started, or started again.
var ports = struct {
	sync.Mutex
	taken map[int]bool
}{taken: map[int]bool{}}

// FreeAddrs returns n loopback addresses that nobody uses, and that nobody gets who
// names no port: between here and the start of a process, and while one is started
// again, its port is free for whoever wants it.
func FreeAddrs(n int) ([]string, error) {
	ports.Lock()
	defer ports.Unlock()
	end := firstEphemeral()
	var addrs []string
	for tries := 0; len(addrs) < n; tries++ {
		port := 0 // whichever the system chooses, where it may choose any
		if end > leastPort {
			port = leastPort + rand.IntN(end-leastPort)
		}
		if ports.taken[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			if port == 0 || tries > 100*n {
				return nil, err
			}
			continue
		}
		// Held until all are chosen, so that no port is chosen twice.
		defer l.Close()
		if port = l.Addr().(*net.TCPAddr).Port; !ports.taken[port] {
			ports.taken[port] = true
			addrs = append(addrs, l.Addr().String())
		}
	}
	return addrs, nil
}

// firstEphemeral returns the least port that the system gives to who names none.
func firstEphemeral() (port int) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if _, serr := fmt.Sscan(string(text), &port); err != nil || serr != nil {
		return 0
	}
	return port
}
