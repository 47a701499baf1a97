// Go: goroutines on one processor, channels of one place for Deferreds.
//
//	go WORKLOAD [ARGUMENT...]
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func cpu() float64 {
	var r syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

type stamp struct {
	wall time.Time
	cpu  float64
}

func begin() stamp { return stamp{time.Now(), cpu()} }

// What passes on the clock, or the processor's time when that is less: the collector has threads.
func (s stamp) tellEach(n int, unit string) {
	took := time.Since(s.wall).Seconds()
	if c := cpu() - s.cpu; c < took {
		took = c
	}
	fmt.Printf("%.2f\t%s\n", took*1e9/float64(n), unit)
}

// Runs the function as that many goroutines until all have ended.
func runAll(n int, body func(i int)) {
	var all sync.WaitGroup
	all.Add(n)
	for i := 0; i < n; i++ {
		go func(i int) {
			body(i)
			all.Done()
		}(i)
	}
	all.Wait()
}

func steps(tasks, total int) {
	each, start := total/tasks, begin()
	runAll(tasks, func(int) {
		for i := 0; i < each; i++ {
			runtime.Gosched()
		}
	})
	start.tellEach(each*tasks, "ns/step")
}

func accumulate(total, room int) {
	values, channel, start := []int{}, make(chan int, room), begin()
	go func() {
		for i := 1; i <= total; i++ {
			channel <- i
		}
		close(channel)
	}()
	for v := range channel {
		values = append(values, v)
	}
	start.tellEach(len(values), "ns/value")
}

func awaitReady(total int) {
	sum, start := 0, begin()
	for i := 0; i < total; i++ {
		channel := make(chan int, 1)
		channel <- i
		sum += <-channel
	}
	start.tellEach(total, "ns/await")
	if sum != total*(total-1)/2 {
		panic("wrong sum")
	}
}

func awaitFired(total, coroutines int) {
	type shot struct {
		channel chan int
		value   int
	}
	queue, start := make(chan shot, coroutines), begin()
	go func() {
		for s := range queue {
			s.channel <- s.value
		}
	}()
	runAll(coroutines, func(int) {
		for i := 0; i < total/coroutines; i++ {
			channel := make(chan int, 1)
			queue <- shot{channel, i}
			if <-channel != i {
				panic("wrong value")
			}
		}
	})
	start.tellEach(total, "ns/await")
}

func spawn(total int) {
	start := begin()
	for i := 0; i < total; i += 1000 {
		runAll(1000, func(int) {})
	}
	start.tellEach(total, "ns/coroutine")
}

func timers(total int) {
	random, left := uint64(42), total
	start, calls, done := cpu(), make([]*time.Timer, total), make(chan bool, 1)
	var lock sync.Mutex
	over := func() { // it has been made, or never will be
		lock.Lock()
		if left--; left == 0 {
			done <- true
		}
		lock.Unlock()
	}
	for i := range calls {
		random = (random*1103515245 + 12345) & 0x7fffffff
		calls[i] = time.AfterFunc(time.Duration(random>>8%1000)*time.Millisecond, over)
	}
	for i := 1; i < total; i += 2 {
		if calls[i].Stop() {
			over()
		}
	}
	<-done
	fmt.Printf("%.2f\tns/timer\n", (cpu()-start)*1e9/float64(total))
}

func latency(duration int) {
	var late []float64
	count, over, start := 0, false, time.Now()
	var all sync.WaitGroup
	all.Add(1)
	go func() {
		for !over {
			due := time.Now().Add(5 * time.Millisecond)
			time.Sleep(5 * time.Millisecond)
			late = append(late, time.Since(due).Seconds()*1e3)
			over = time.Since(start) >= time.Duration(duration)*time.Second
		}
		all.Done()
	}()
	runAll(4, func(n int) {
		x := 0.0
		for i := 1; !over; i++ {
			x += float64(n*i) / 3
			count++
			runtime.Gosched()
		}
	})
	all.Wait()
	took := time.Since(start).Seconds()
	sort.Float64s(late)
	fmt.Printf("%.3f\tms p50\n", late[len(late)/2])
	fmt.Printf("%.3f\tms p99\n", late[len(late)*99/100])
	fmt.Printf("%.2f\tMsteps/s\n", float64(count)/took/1e6)
}

func resident() float64 {
	var size, pages int
	text, _ := os.ReadFile("/proc/self/statm")
	fmt.Sscan(string(text), &size, &pages)
	return float64(pages * os.Getpagesize())
}

func memory(total int, fill func()) {
	debug.FreeOSMemory()
	before := resident()
	fill()
	debug.FreeOSMemory()
	fmt.Printf("%.1f\tbytes\n", (resident()-before)/float64(total))
}

func memoryTasks(total int) {
	never := make(chan bool)
	memory(total, func() {
		for i := 0; i < total; i++ {
			go func() { <-never }()
		}
		runtime.Gosched()
	})
}

func memoryDeferreds(total int) {
	kept := make([]chan int, total)
	for i := range kept {
		kept[i] = nil
	}
	memory(total, func() {
		for i := range kept {
			kept[i] = make(chan int, 1)
		}
	})
	runtime.KeepAlive(kept)
}

func main() {
	runtime.GOMAXPROCS(1)
	var n [2]int
	for i, text := range os.Args[2:] {
		n[i], _ = strconv.Atoi(text)
	}
	switch os.Args[1] {
	case "steps":
		steps(n[0], n[1])
	case "accumulate":
		accumulate(n[0], n[1])
	case "await-ready":
		awaitReady(n[0])
	case "await-fired":
		awaitFired(n[0], n[1])
	case "spawn":
		spawn(n[0])
	case "timers":
		timers(n[0])
	case "latency":
		latency(n[0])
	case "memory-tasks":
		memoryTasks(n[0])
	case "memory-deferreds":
		memoryDeferreds(n[0])
	default:
		os.Exit(2)
	}
}
